"""Adapters on disk in PEFT's format: safetensors only, checked before they are read."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedlora import atomic
from fedlora.adapter import AdapterSpec, AdapterState, Factor, TensorSpec
from fedlora.errors import AdapterError

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>[\w.]{1,256})\.lora_(?P<factor>[AB])\.weight")
_DTYPES = {"F32", "F16", "BF16"}
_MOST_TENSORS, _LONGEST_HEADER = 20_000, 8 * 2**20
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
}
"""Values that keep the meaning of plain factors. Of other options that is: unset."""
_WITHOUT_MEANING = {
    "task_type", "lora_dropout", "inference_mode", "auto_mapping", "peft_version", "r",
    "lora_alpha", "target_modules", "base_model_name_or_path", "revision", "megatron_core",
    "qalora_group_size",
}  # fmt: skip
"""Options that are read, or that do not change what the factors mean."""


def write_peft_folder(state: AdapterState, folder: Path) -> None:
    """Write an adapter so that PEFT, vLLM and LoRAX load it; the folder appears at once.

    Raises:
        StorageError: the folder cannot be written.
    """
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
    with atomic.new_folder(folder) as temporary:
        text = json.dumps(config, indent=2) + "\n"
        (temporary / _CONFIG).write_text(text, encoding="utf-8")
        # safetensors' own save_file does not raise OSError on a full disk
        (temporary / _WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def read_peft_folder(folder: Path, *, base_digest: str = "") -> AdapterState:
    """Read a LoRA adapter that PEFT wrote, as float32.

    Nothing of the file is read before its header was checked, and no pickle ever is: PEFT itself
    would overwrite base weights that such a file can hold.

    Args:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base_digest: digest of the base model that the adapter is meant for, where it is known.

    Raises:
        AdapterError: the folder holds no adapter, or one that is not plain LoRA.
    """
    config = _read_config(folder)
    path = folder / _WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{folder}: there is no {_WEIGHTS}. Pickled adapters are not read.")
    tensors = _check_header(path, _read_header(path), rank=config["r"])
    spec = AdapterSpec(
        base_model=str(config["base_model_name_or_path"]),
        base_model_revision=config.get("revision"),
        base_digest=base_digest,
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        target_modules=tuple(config["target_modules"]),
        tensors=tensors,
    )
    with safe_open(path, framework="pt") as file:
        keys = (f"base_model.model.{tensor.name}.weight" for tensor in tensors)
        flat = torch.cat([file.get_tensor(key).to(torch.float32).flatten() for key in keys])
    state = AdapterState(spec=spec, values=flat)
    if not state.is_finite():
        raise AdapterError(f"{path}: it holds values that are not finite.")
    return state


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: an adapter's configuration was expected ({error}).") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: an adapter's configuration was expected, a JSON object.")
    for key, value in config.items():
        harmless = value in _HARMLESS[key] if key in _HARMLESS else not value
        if key not in _WITHOUT_MEANING and not harmless:
            raise AdapterError(f"{path}: {key} is {value!r:.80}; only plain LoRA is read.")
    rank, alpha, modules = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or rank < 1:
        raise AdapterError(f"{path}: r must be a positive integer, but it is {rank!r:.80}.")
    if not isinstance(alpha, int | float) or alpha is True or not 0 < alpha <= _LARGEST:
        raise AdapterError(
            f"{path}: lora_alpha must be a positive number, but it is {alpha!r:.80}."
        )
    modules = [modules] if isinstance(modules, str) else modules
    if not (modules and isinstance(modules, list) and all(isinstance(m, str) for m in modules)):
        raise AdapterError(f"{path}: target_modules must be a list of names.")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not (base and isinstance(base, str) and isinstance(revision, str | None)):
        raise AdapterError(
            f"{path}: base_model_name_or_path must be the base model's name, and revision null or "
            f"the name of its version, but they are {base!r:.80} and {revision!r:.80}."
        )
    return config | {"target_modules": modules}


def _read_header(path: Path) -> dict[str, Any]:
    """Return a safetensors file's header without trusting its length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size):
            raise AdapterError(f"{path}: a header of {length:,} bytes is not plausible.")
        try:
            header = json.loads(file.read(length))
            with safe_open(path, framework="pt"):
                pass  # it checks the offsets
        except (ValueError, RecursionError, SafetensorError) as error:
            raise AdapterError(f"{path}: this is not a safetensors file ({error}).") from None
    if not isinstance(header, dict):
        raise AdapterError(f"{path}: this is not a safetensors file.")
    header.pop("__metadata__", None)
    return header


def _check_header(path: Path, header: Mapping[str, Any], *, rank: int) -> tuple[TensorSpec, ...]:
    """Return the factors in the file: pairs of A and B of one rank, and nothing else."""
    if not 0 < len(header) <= _MOST_TENSORS:
        raise AdapterError(f"{path}: {len(header)} tensors are not plausible.")
    pairs: dict[str, dict[Factor, TensorSpec]] = {}
    for key, entry in header.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"{path}: {key!r:.100} is no LoRA factor; nothing else is read.")
        if entry["dtype"] not in _DTYPES or len(entry["shape"]) != 2:
            raise AdapterError(f"{path}: {key} is not a matrix of floating-point values.")
        factor: Factor = "A" if match["factor"] == "A" else "B"
        shape = (int(entry["shape"][0]), int(entry["shape"][1]))
        if shape[0 if factor == "A" else 1] != rank:
            raise AdapterError(f"{path}: {key} has shape {shape}, but the rank is {rank}.")
        spec = TensorSpec(module=match["module"], factor=factor, shape=shape)
        pairs.setdefault(match["module"], {})[factor] = spec
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise AdapterError(f"{path}: {module} has only one of its two factors.")
    return tuple(pair[factor] for pair in pairs.values() for factor in ("A", "B"))
