"""What PEFT's ``adapter_config.json`` says of the tensors beside it, checked first."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from fedlora.errors import AdapterError

CONFIG = "adapter_config.json"
SAVED_WHOLE = "classifier", "score"
"""Ends of the names of modules that PEFT trains and saves whole in each sequence classifier."""
_NAME_PATTERN = re.compile(r"\^?[\w.]{1,256}")
_MOST_PATTERNS, _LARGEST_CONFIG = 1_000, 2**20
_LARGEST = 1e9
"""Above every alpha that means something, and below what overflows."""
CLASSIFIER = "SEQ_CLS"
"""PEFT's task of adapters with a head, which is saved whole."""
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
    "megatron_core", "qalora_group_size", "modules_to_save",
}  # fmt: skip
"""Options that are read, or that do not change what the factors mean."""
_CHOICES = "exclude_modules", "layers_to_transform", "layers_pattern"
"""Options that leave out some of ``target_modules``."""

_Value = TypeVar("_Value")


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """What ``adapter_config.json`` says of the tensors."""

    base_model: str
    revision: str | None
    rank: int
    alpha: float
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]
    rank_stabilised: bool
    saved_modules: tuple[str, ...]
    """Ends of the names of modules that the file has whole."""
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


def read_config(folder: Path, *, base_model: str | None) -> PeftConfig:
    """Return what an adapter's configuration says.

    Args:
        folder: the adapter's.
        base_model: what its base is called, whatever the configuration says; if it is known.

    Raises:
        AdapterError: there is no configuration, or it is not that of plain LoRA.
    """
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
    return PeftConfig(
        base_model=base,
        revision=revision,
        rank=rank,
        alpha=float(alpha),
        ranks=_read_pattern(path, config, key="rank_pattern", fits=_is_rank),
        alphas=_read_pattern(path, config, key="alpha_pattern", fits=_is_alpha),
        rank_stabilised=bool(config.get("use_rslora")),
        saved_modules=_read_saved_modules(path, config),
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


def _read_saved_modules(path: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of what was trained whole: the head of a classifier, and nothing else."""
    modules = config.get("modules_to_save") or []
    classifies = config.get("task_type") == CLASSIFIER
    names = isinstance(modules, list) and all(isinstance(name, str) and name for name in modules)
    if not names or len(modules) > _MOST_PATTERNS or (modules and not classifies):
        raise AdapterError(
            f"{path}: modules_to_save is {modules!r:.80}; of what was trained whole, only the head "
            f"of a classifier (task_type {CLASSIFIER}) is read."
        )
    return (*modules, *SAVED_WHOLE) if classifies else ()
