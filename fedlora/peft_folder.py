"""Adapters on disk in PEFT's format: safetensors only, checked before they are read."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fedlora import atomic
from fedlora.adapter import AdapterSpec, AdapterState, Factor, TensorSpec
from fedlora.errors import AdapterError
from fedlora.peft_config import CLASSIFIER, CONFIG, SAVED_WHOLE, PeftConfig, read_config
from fedlora.tensor_file import pieces, read_header

WEIGHTS = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>[\w.]{1,256})\.lora_(?P<factor>[AB])\.weight")
_HEAD_KEY = re.compile(r"base_model\.model\.(?P<module>[\w.]{1,256})\.(weight|bias)")
_PREFIX = "base_model.model."
_DTYPES = {"F32", "F16", "BF16"}
_MOST_TENSORS, _MOST_PADDING = 20_000, 16
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


def write_peft_folder(state: AdapterState, folder: Path) -> None:
    """Write an adapter so that PEFT, vLLM and LoRAX load it; the folder appears at once.

    A head is written as PEFT writes modules that were trained whole, for sequence classification.

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
    if spec.heads:
        config |= {"task_type": CLASSIFIER, "modules_to_save": _saved_modules(spec)}
    tensors = {_key(tensor): values.contiguous() for tensor, values in state.factors()}
    text = json.dumps(config, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    with (folder / WEIGHTS).open("wb") as file:
        file.writelines(pieces(tensors, metadata={"format": "pt"}))


def _key(tensor: TensorSpec) -> str:
    """Return what PEFT calls a tensor in its files."""
    return f"{_PREFIX}{tensor.name}{'.weight' if tensor.is_factor else ''}"


def _saved_modules(spec: AdapterSpec) -> list[str]:
    """Return the names by which PEFT takes the heads' modules, and no other, whole.

    Names of ``SAVED_WHOLE`` it takes for any such task; it looks for them from the outermost on.
    """
    modules = []
    for head in spec.heads:
        parts = head.module.split(".")[:-1]
        paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        modules.append(next((path for path in paths if path.endswith(SAVED_WHOLE)), paths[-1]))
    return list(dict.fromkeys(modules))


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
    config = read_config(folder, base_model=base_model)
    path = folder / WEIGHTS
    if not path.is_file():
        raise AdapterError(f"{folder}: there is no {WEIGHTS}. Pickled adapters are not read.")
    tensors = _check_header(path, read_header(path), config=config)
    rank = max(config.rank_of(tensor.module) for tensor in tensors if tensor.is_factor)
    spec = AdapterSpec(
        base_model=config.base_model,
        base_model_revision=config.revision,
        base_digest=base_digest,
        rank=rank,
        alpha=config.alpha * (rank / config.divisor(config.rank)),
        target_modules=config.target_modules
        or tuple(dict.fromkeys(tensor.module for tensor in tensors if tensor.is_factor)),
        tensors=tuple(tensor.with_rank(rank) for tensor in tensors),
    )
    if spec.size > _MOST_PADDING * sum(tensor.size for tensor in tensors):
        raise AdapterError(f"{path}: ranks up to {rank} differ too much to be padded to one.")
    state = AdapterState(spec=spec, values=torch.zeros(spec.size))
    with safe_open(path, framework="pt") as file:
        for tensor, values in state.factors():
            stored = file.get_tensor(_key(tensor))
            values[tuple(map(slice, stored.shape))] = stored
            factor = config.scaling_over_default(tensor.module)
            if tensor.factor == "B" and factor != 1:
                values.mul_(factor)
    if not state.is_finite():
        raise AdapterError(f"{path}: it holds values that are not finite.")
    return state


def _check_header(
    path: Path, header: Mapping[str, Any], *, config: PeftConfig
) -> tuple[TensorSpec, ...]:
    """Return the tensors in the file: pairs of A and B of their module's rank, then the heads."""
    if not 0 < len(header) <= _MOST_TENSORS:
        raise AdapterError(f"{path}: {len(header)} tensors are not plausible.")
    pairs: dict[str, dict[Factor, TensorSpec]] = {}
    heads: list[TensorSpec] = []
    for key, entry in header.items():
        spec = _tensor(path, key, entry, config=config)
        if spec.is_factor:
            pairs.setdefault(spec.module, {})[spec.factor] = spec
        else:
            heads.append(spec)
    for module, pair in pairs.items():
        if len(pair) < 2:
            raise AdapterError(f"{path}: {module} has only one of its two factors.")
    if not pairs:
        raise AdapterError(f"{path}: there are no LoRA factors.")
    factors = (pair[factor] for pair in pairs.values() for factor in ("A", "B"))
    return (*factors, *heads)


def _tensor(path: Path, key: str, entry: Mapping[str, Any], *, config: PeftConfig) -> TensorSpec:
    """Return one tensor: a factor of its module's rank, or of a head."""
    match, head = KEY.fullmatch(key), _HEAD_KEY.fullmatch(key)
    if not match and not (head and _is_saved(head["module"], config.saved_modules)):
        raise AdapterError(
            f"{path}: {key!r:.100} is no LoRA factor, and not of a classifier's head; nothing else "
            "is read."
        )
    if entry["dtype"] not in _DTYPES or len(entry["shape"]) not in ({2} if match else {1, 2}):
        raise AdapterError(f"{path}: {key} is not a matrix of floating-point values.")
    shape = tuple(map(int, entry["shape"]))
    if match is None:
        return TensorSpec(module=key.removeprefix(_PREFIX), factor="head", shape=shape)
    factor: Factor = "A" if match["factor"] == "A" else "B"
    spec = TensorSpec(module=match["module"], factor=factor, shape=shape)
    rank = config.rank_of(spec.module)
    if spec.with_rank(rank) != spec:
        raise AdapterError(f"{path}: {key} has shape {shape}, but the rank is {rank}.")
    return spec


def _is_saved(module: str, saved: Iterable[str]) -> bool:
    """Tell whether a module, or one that it is in, has one of these names, as PEFT looks for it."""
    parts = module.split(".")
    outer = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(path.endswith(tuple(saved)) for path in outer)
