"""Adapters on disk in PEFT's format: safetensors only, checked before they are read."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from safetensors import safe_open

from fedlora import atomic
from fedlora.adapter import AdapterSpec, AdapterState, Factor, TensorSpec
from fedlora.errors import AdapterError
from fedlora.tensor_file import pieces, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>[\w.]{1,256})\.lora_(?P<factor>[AB])\.weight")
SAVED_WHOLE = "classifier", "score"
"""Ends of the names of modules that PEFT trains and saves whole in each sequence classifier."""
_DTYPES = {"F32", "F16", "BF16"}
_NAME_PATTERN = re.compile(r"\^?[\w.]{1,256}")
_MOST_TENSORS, _MOST_PADDING = 20_000, 16
_MOST_PATTERNS, _LARGEST_CONFIG = 1_000, 2**20
_LARGEST = sys.float_info.max
_PLAIN = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "lora_dropout": 0.0,
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "inference_mode": True,
}
"""What plain LoRA says in its configuration beside rank, alpha, modules and base model."""
_HARMLESS = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian"),
    "use_rslora": (True, False, None),
}
"""Values that keep the meaning of plain factors. Of other options that is: unset."""
_WITHOUT_MEANING = {
    "task_type", "lora_dropout", "inference_mode", "auto_mapping", "peft_version", "r",
    "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "base_model_name_or_path", "revision",
    "megatron_core", "qalora_group_size",
}  # fmt: skip
"""Options that are read, or that do not change what the factors mean."""
_CHOICES = "exclude_modules", "layers_to_transform", "layers_pattern"
"""Options that leave out some of ``target_modules``."""

_Value = TypeVar("_Value")


def write_peft_folder(state: AdapterState, folder: Path) -> None:
    """Write an adapter so that PEFT, vLLM and LoRAX load it; the folder appears at once.

    Raises:
        StorageError: the folder cannot be written.
    """
    with atomic.new_folder(folder) as temporary:
        write_peft_files(state, temporary)


def write_peft_files(state: AdapterState, folder: Path) -> None:
    """Write the files of ``write_peft_folder`` into a folder that nobody reads yet."""
    spec = state.spec
    config = _PLAIN | {
        "base_model_name_or_path": spec.base_model,
        "revision": spec.base_model_revision,
        "r": spec.rank,
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "target_modules": list(spec.target_modules),
    }
    tensors = {
        f"base_model.model.{tensor.name}.weight": values.contiguous()
        for tensor, values in state.factors()
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    with (folder / WEIGHTS).open("wb") as file:
        file.writelines(pieces(tensors, metadata={"format": "pt"}))


def read_peft_folder(
    folder: Path, *, base_digest: str = "", base_model: str | None = None
) -> AdapterState:
    """Read a LoRA adapter that PEFT wrote, as float32.

    Nothing of the file is read before its header was checked, and no pickle ever is: PEFT itself
    would overwrite base weights that such a file can hold.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_digest: digest of the base model that the adapter is meant for, where it is known.
        base_model: its name, when it is not the one that the folder says.

    Guarantees:
        - Each weight changes as PEFT changes it, also with ``use_rslora``, which scales by
          ``lora_alpha / √r`` (Kalajdzievski 2023, arXiv:2312.03732), and with ranks and alphas of
          single modules. The scaling of such modules is moved into B, and a lower rank padded with
          zeros.
        - Without ranks and alphas of single modules, the factors are those of the file.

    Raises:
        AdapterError: the folder holds no adapter, or one that is not plain LoRA.
    """
    config = _read_config(folder, base_model=base_model)
    path = folder / WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{folder}: there is no {WEIGHTS}. Pickled adapters are not read.")
    tensors = _check_header(path, read_header(path), config=config)
    rank = max(config.rank_of(tensor.module) for tensor in tensors)
    spec = AdapterSpec(
        base_model=config.base_model,
        base_model_revision=config.revision,
        base_digest=base_digest,
        rank=rank,
        alpha=config.alpha * (rank / config.divisor(config.rank)),
        target_modules=config.target_modules or tuple(dict.fromkeys(t.module for t in tensors)),
        tensors=tuple(tensor.with_rank(rank) for tensor in tensors),
    )
    if spec.size > _MOST_PADDING * sum(tensor.size for tensor in tensors):
        raise AdapterError(f"{path}: ranks up to {rank} differ too much to be padded to one.")
    state = AdapterState(spec=spec, values=torch.zeros(spec.size))
    with safe_open(path, framework="pt") as file:
        for tensor, values in state.factors():
            stored = file.get_tensor(f"base_model.model.{tensor.name}.weight")
            rows, columns = stored.shape
            values[:rows, :columns] = stored
            factor = config.scaling_over_default(tensor.module)
            if tensor.factor == "B" and factor != 1:
                values.mul_(factor)
    if not state.is_finite():
        raise AdapterError(f"{path}: it holds values that are not finite.")
    return state


@dataclass(frozen=True, kw_only=True)
class _Config:
    """What ``adapter_config.json`` says of the factors."""

    base_model: str
    revision: str | None
    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    rank_stabilised: bool
    target_modules: tuple[str, ...] | None
    """None where a pattern or another option chooses among the modules."""

    def rank_of(self, module: str) -> int:
        return _first(self.ranks, module) or self.rank

    def divisor(self, rank: int) -> float:
        """Return what alpha is divided by."""
        return math.sqrt(rank) if self.rank_stabilised else rank

    def scaling_over_default(self, module: str) -> float:
        """Return a module's scaling as a multiple of that of modules that no pattern fits."""
        alpha = _first(self.alphas, module) or self.alpha
        divisor = self.divisor(self.rank_of(module))
        return (alpha / self.alpha) * (self.divisor(self.rank) / divisor)


def _first(pattern: Mapping[re.Pattern[str], _Value], module: str) -> _Value | None:
    """Return the value of the first key that fits the module, as PEFT does."""
    return next((value for key, value in pattern.items() if key.fullmatch(module)), None)


def read_options(folder: Path) -> dict[str, Any]:
    """Return what an adapter's configuration says, whatever it says.

    Raises:
        AdapterError: there is no configuration.
    """
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            config = json.loads(file.read(_LARGEST_CONFIG).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: an adapter's configuration was expected ({error}).") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: an adapter's configuration was expected, a JSON object.")
    return config


def _read_config(folder: Path, *, base_model: str | None) -> _Config:
    path, config = folder / CONFIG, read_options(folder)
    for key, value in config.items():
        harmless = value in _HARMLESS[key] if key in _HARMLESS else not value
        if key not in _WITHOUT_MEANING and not harmless:
            raise AdapterError(f"{path}: {key} is {value!r:.80}; only plain LoRA is read.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _is_rank(rank):
        raise AdapterError(f"{path}: r must be a positive integer, but it is {rank!r:.80}.")
    if not _is_alpha(alpha):
        raise AdapterError(
            f"{path}: lora_alpha must be a positive number, but it is {alpha!r:.80}."
        )
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    base, revision = (base_model, None) if base_model else (base, revision)
    if not (base and isinstance(base, str) and isinstance(revision, str | None)):
        raise AdapterError(
            f"{path}: base_model_name_or_path must be the base model's name, and revision null or "
            f"the name of its version, but they are {base!r:.80} and {revision!r:.80}."
        )
    return _Config(
        base_model=base,
        revision=revision,
        rank=rank,
        alpha=float(alpha),
        ranks=_read_pattern(path, config, key="rank_pattern", fits=_is_rank),
        alphas=_read_pattern(path, config, key="alpha_pattern", fits=_is_alpha),
        rank_stabilised=bool(config.get("use_rslora")),
        target_modules=_read_target_modules(path, config),
    )


def _is_rank(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 1


def _is_alpha(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and value is not True and 0 < value <= _LARGEST


def _read_pattern(
    path: Path, config: Mapping[str, Any], *, key: str, fits: Callable[[object], bool]
) -> dict[re.Pattern[str], Any]:
    """Return what single modules have; a key is a module's path, or its end unless it has a ^."""
    pattern = config.get(key) or {}
    if not (isinstance(pattern, dict) and len(pattern) <= _MOST_PATTERNS):
        raise AdapterError(f"{path}: {key} is {pattern!r:.80}; names of modules were expected.")
    for name, value in pattern.items():
        # any regular expression means something to PEFT, and some take for ever
        if not (_NAME_PATTERN.fullmatch(name) and fits(value)):
            raise AdapterError(
                f"{path}: {key} has {value!r:.80} for {name!r:.80}; positive numbers for names of "
                "modules were expected."
            )
    return {re.compile(rf"(.*\.)?({name})"): value for name, value in pattern.items()}


def _read_target_modules(path: Path, config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the adapted modules, or None if they are those in the file."""
    modules = config.get("target_modules")
    names = isinstance(modules, list) and all(isinstance(module, str) for module in modules)
    if not (modules and (names or isinstance(modules, str))):
        raise AdapterError(f"{path}: target_modules must be a list of names.")
    chosen = any(config.get(key) not in (None, "", []) for key in _CHOICES)
    return tuple(modules) if names and not chosen else None


def _check_header(
    path: Path, header: Mapping[str, Any], *, config: _Config
) -> tuple[TensorSpec, ...]:
    """Return the factors in the file: pairs of A and B of their module's rank, nothing else."""
    if not 0 < len(header) <= _MOST_TENSORS:
        raise AdapterError(f"{path}: {len(header)} tensors are not plausible.")
    pairs: dict[str, dict[Factor, TensorSpec]] = {}
    for key, entry in header.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"{path}: {key!r:.100} is no LoRA factor; nothing else is read.")
        if entry["dtype"] not in _DTYPES or len(entry["shape"]) != 2:
            raise AdapterError(f"{path}: {key} is not a matrix of floating-point values.")
        factor: Factor = "A" if match["factor"] == "A" else "B"
        shape = (int(entry["shape"][0]), int(entry["shape"][1]))
        rank = config.rank_of(match["module"])
        if shape[0 if factor == "A" else 1] != rank:
            raise AdapterError(f"{path}: {key} has shape {shape}, but the rank is {rank}.")
        spec = TensorSpec(module=match["module"], factor=factor, shape=shape)
        pairs.setdefault(match["module"], {})[factor] = spec
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise AdapterError(f"{path}: {module} has only one of its two factors.")
    return tuple(pair[factor] for pair in pairs.values() for factor in ("A", "B"))
