"""Which modules of a network carry LoRA."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from fedlora.adapter import TensorSpec
from fedlora.errors import BaseModelError

_LINEAR = nn.Linear, FalconLinear, Linear4bit, Linear8bitLt
"""What computes ``W x + b``; other subclasses of ``nn.Linear`` are routers and the like."""

Shapes: TypeAlias = Mapping[str, tuple[int, int]]
"""``(out_features, in_features)`` of modules by path, in the network's order."""


def linear_modules(network: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return the linear modules, GPT-2's Conv1D among them, without the output head."""
    head = network.get_output_embeddings()
    return {
        path: shape
        for path, module in network.named_modules()
        if module is not head and (shape := _shape(module))
    }


def expert_widths(network: PreTrainedModel) -> int:
    """Return the inputs and outputs of one expert of each layer that is a mixture of them.

    The experts' weights lie in one tensor, whose first dimension they are.
    """
    stacks = (parameter.shape for parameter in network.parameters() if parameter.ndim == 3)
    return sum(rows + columns for _, rows, columns in stacks)


def _shape(module: nn.Module) -> tuple[int, int] | None:
    if type(module) in _LINEAR and isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return (module.nf, module.nx) if isinstance(module, Conv1D) else None


def separate_linears(network: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Return the linear modules whose weights belong to no other module too, and lie as ``W``.

    The output head is among them unless it shares the embedding's weights; Conv1D, which keeps its
    weight transposed, is not.
    """
    owners = Counter(
        id(parameter)
        for module in network.modules()
        for parameter in module.parameters(recurse=False)
    )
    return {
        path: (module.out_features, module.in_features)
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and owners[id(module.weight)] == 1
    }


def select(linears: Shapes, wanted: str | Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the modules that are meant, in the network's order.

    Args:
        linears: all that could carry LoRA.
        wanted: ``all-linear``, a regular expression that whole paths fit, or a list of paths and
            ends of paths such as ``q_proj`` or ``mlp.up_proj``.

    Raises:
        BaseModelError: a name or the expression fits no linear module, or there is none at all.
    """
    if wanted == "all-linear":
        unknown, meant = [], set(linears)
    elif isinstance(wanted, str):
        meant = {path for path in linears if re.fullmatch(wanted, path)}
        unknown = [] if meant else [wanted]
    else:
        unknown = [name for name in wanted if not any(_fits(path, name) for path in linears)]
        meant = {path for path in linears if any(_fits(path, name) for name in wanted)}
    if unknown or not linears:
        expression = " as a regular expression for whole paths" if isinstance(wanted, str) else ""
        raise BaseModelError(
            f"lora_target_modules: {', '.join(unknown) or 'all-linear'} fits no linear module of "
            f"the base model{expression if unknown else ''}. It has: "
            f"{', '.join(_leaves(linears)) or 'none'}."
        )
    return {path: shape for path, shape in linears.items() if path in meant}


def shortest_names(network: nn.Module, selected: Iterable[str]) -> tuple[str, ...]:
    """Return the names by which PEFT finds the selected modules, and no other, again.

    Their sorted last parts (``q_proj``) where these are unambiguous, else their sorted paths.
    """
    paths = set(selected)
    leaves = _leaves(paths)
    fitting = {p for p, _ in network.named_modules() if p.rpartition(".")[2] in leaves}
    return tuple(leaves if fitting == paths else sorted(paths))


def factor_shapes(selected: Shapes, *, rank: int) -> tuple[TensorSpec, ...]:
    """Return the factors of the selected modules, A before B."""
    tensors: list[TensorSpec] = []
    for path, (rows, columns) in selected.items():
        tensors += (
            TensorSpec(module=path, factor="A", shape=(rank, columns)),
            TensorSpec(module=path, factor="B", shape=(rows, rank)),
        )
    return tuple(tensors)


def _fits(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _leaves(paths: Iterable[str]) -> list[str]:
    return sorted({path.rpartition(".")[2] for path in paths})
