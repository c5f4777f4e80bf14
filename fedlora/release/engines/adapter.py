"""What an adapter's folder says, whoever made it: options, names and shapes. No value is read."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from fedlora.errors import AdapterError
from fedlora.peft_config import read_options
from fedlora.peft_folder import KEY, WEIGHTS
from fedlora.tensor_file import read_header

_LAYER = re.compile(r"\.(\d+)\.")
_SHOWN = 80
_FLOATS = {"F32", "F16", "BF16"}


def shown(text: str) -> str:
    """Return a stranger's text as a terminal may have it: short, and without control codes."""
    return text[:_SHOWN] if text.isprintable() else ascii(text)[:_SHOWN]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as a safetensors header has it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class AdapterFolder:
    """A PEFT folder: what is in it before any engine has an opinion."""

    path: Path
    options: Mapping[str, Any]
    """``adapter_config.json``."""
    tensors: Mapping[str, Tensor]
    """By the names in ``adapter_model.safetensors``; none where there is no such file."""
    files: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a folder. A pickle in it is not opened.

        Raises:
            AdapterError: there is no adapter's configuration, or what should be safetensors is not.
        """
        options = read_options(path)
        files = frozenset(each.name for each in path.iterdir() if each.is_file())
        header = read_header(path / WEIGHTS) if WEIGHTS in files else {}
        try:
            tensors = {
                name: Tensor(dtype=entry["dtype"], shape=tuple(entry["shape"]))
                for name, entry in header.items()
            }
        except (TypeError, KeyError):
            raise AdapterError(f"{path / WEIGHTS}: this is not a safetensors file.") from None
        return cls(path, options, tensors, files)

    @property
    def is_lora(self) -> bool:
        """Whether PEFT calls it LoRA; nothing else has factors."""
        return self.options.get("peft_type") == "LORA"

    @property
    def rank(self) -> int:
        """The rank that the configuration names; 0 if it names none."""
        rank = self.options.get("r")
        return rank if type(rank) is int else 0

    @property
    def alpha(self) -> float:
        """The alpha that the configuration names; 0 if it names none."""
        alpha = self.options.get("lora_alpha")
        return alpha if isinstance(alpha, int | float) else 0

    @property
    def base_model(self) -> str:
        """The base model's name; empty if the configuration names none."""
        return str(self.options.get("base_model_name_or_path") or "")

    @cached_property
    def factors(self) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        """The shapes of A and of B, by module."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, tensor in self.tensors.items():
            if match := KEY.fullmatch(name):
                found.setdefault(match["module"], {})[match["factor"]] = tensor.shape
        return found

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """The rank of each module, by what is in the file."""
        shapes = {
            module: pair["A"] if "A" in pair else pair["B"][::-1]
            for module, pair in self.factors.items()
        }
        return {module: shape[0] for module, shape in shapes.items() if len(shape) == 2}

    @property
    def largest_rank(self) -> int:
        """Of all modules."""
        return max([self.rank, *self.ranks.values()])

    @cached_property
    def others(self) -> Sequence[str]:
        """Names of the tensors that are no LoRA factors."""
        return [name for name in self.tensors if not KEY.fullmatch(name)]

    @cached_property
    def kinds(self) -> Mapping[str, frozenset[int]]:
        """The layers in which each kind of module, such as ``q_proj``, is adapted."""
        found: dict[str, set[int]] = {}
        for module in self.factors:
            layer = _LAYER.search(module)
            found.setdefault(module.rpartition(".")[2], set()).update(
                {int(layer[1])} if layer else ()
            )
        return {kind: frozenset(layers) for kind, layers in found.items()}

    def layers_of(self, kind: str) -> frozenset[int]:
        """Return the layers in which a kind of module is adapted."""
        return self.kinds.get(kind, frozenset())

    @property
    def odd_dtypes(self) -> Sequence[str]:
        """Types of values that are no floats of 16 or 32 bits."""
        return sorted({tensor.dtype for tensor in self.tensors.values()} - _FLOATS)
