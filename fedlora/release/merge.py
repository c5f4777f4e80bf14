"""A release merged into its base: a model of its own, for those who cannot load adapters.

The base has to be the full-precision one: in a 4-bit base the merged weights would be rounded to
4 bits again, which changes the logits by a fifth.
"""

import json
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fedlora import __version__, atomic
from fedlora.adapter import AdapterState
from fedlora.document import write_yaml
from fedlora.errors import ReleaseError, StorageError
from fedlora.peft_folder import read_peft_folder
from fedlora.release.card import CARD
from fedlora.release.folder import Release, files_of, sign_folder
from fedlora.release.manifest import FILE_NAME, MANIFEST, Code, Evaluation, Manifest, stamp
from fedlora.release.provenance import PROVENANCE, merge_provenance
from fedlora.release.weights import Change, Weights
from fedlora.signing import Signer
from fedlora.training.base_model import digest, mergeable, other_files, weight_files

_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"
_SPARE = 16 * 2**20
"""Bytes for what is neither weights nor a file of the base."""
_QUANTIZED = "quantization_config", "compression_config"
_CARD = """\
---
{metadata}---

# {name}

`{base}` with a LoRA adapter merged into it, which was fine-tuned by federated learning.

- Adapter: release `{parent}`, whose card says how it was trained
- Base model: `{base}`{revision}, SHA-256 `{digest}`

## Privacy

Of the adapter, and of all that is computed from it:

{privacy}

## Evaluation

Nothing was measured of the merged model.
"""


def merge(
    release: Release,
    base: Path,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    signer: Signer | None = None,
) -> Manifest:
    """Write base plus adapter as a model that needs no adapter, and return its manifest.

    Args:
        release: of an adapter.
        base: the folder of its base model, in full precision.
        out: a new folder; its manifest names the adapter's release as its parent.
        dtype: of the weights; by default each keeps the base's.
        signer: signs the manifest; without it, it is a draft.

    Guarantees:
        - Each adapted weight is ``W + scaling * B @ A``, computed in float64, rounded at the end.
        - Without ``dtype``, all other weights are the base's, bit for bit.
        - Memory does not grow with the model.
        - ``out`` is there whole or not at all.

    Raises:
        ReleaseError: the release is no adapter, or this is not its base or cannot be merged into.
        StorageError: ``out`` is there already, or cannot be written.
    """
    if out.exists():
        raise StorageError(f"{out}: it is already there. Choose another folder, or remove it.")
    manifest = release.manifest
    config = _require_base(release, base)
    state = read_peft_folder(release.folder, base_digest=manifest.base.digest)
    shards = [Weights.open(path, dtype=dtype) for path in weight_files(base)]
    changes = _changes(state, shards, base)
    _require_room(out, sum(shard.size for shard in shards), base)
    _require_names(base)
    with atomic.new_folder(out) as folder:
        for path in other_files(base):
            shutil.copyfile(path, folder / path.name)
        for shard in shards:
            shard.write(folder / shard.path.name, changes)
        if len(shards) > 1:
            _write_json(folder / _INDEX, _index(shards))
        if dtype:
            _write_json(folder / _CONFIG, _in_dtype(config, dtype))
        merged = _manifest(release)
        told = merge_provenance(merged, files_of(folder))
        (folder / PROVENANCE).write_text(told, encoding="utf-8")
        (folder / CARD).write_text(_card(merged), encoding="utf-8")
        whole = merged.model_copy(update={"files": files_of(folder)})
        merged = Manifest.from_json(whole.to_json(), source=str(folder / MANIFEST))
        if signer:
            sign_folder(folder, merged, signer=signer)
        else:
            (folder / MANIFEST).write_bytes(merged.to_json())
    return merged


def _require_base(release: Release, base: Path) -> dict[str, Any]:
    """Return the base's configuration, if it is the base that the adapter belongs on.

    Raises:
        ReleaseError: it is another, or quantised.
    """
    manifest = release.manifest
    if manifest.kind != "adapter":
        raise ReleaseError(f"{release.folder}: an adapter was expected; this is {manifest.kind}.")
    try:
        config: dict[str, Any] = json.loads((base / _CONFIG).read_text(encoding="utf-8"))
        quantized = any(config.get(key) for key in _QUANTIZED)
    except (OSError, ValueError, AttributeError) as error:
        raise ReleaseError(f"{base}: a base model's folder was expected ({error}).") from None
    if quantized:
        raise ReleaseError(
            f"{base}: this base is quantised. Merged into it, the change would be rounded to its "
            "few bits, which costs more than the adapter gains. Name the full-precision base; "
            "quantise what comes out."
        )
    if (found := digest(base)) != manifest.base.digest:
        raise ReleaseError(
            f"{base}: the digest of this base is {found[:12]}, but the adapter belongs on "
            f"{manifest.base.name} with {manifest.base.digest[:12]}: weights, configuration, "
            "tokenizer or chat template are others. Get the base as the manifest says."
        )
    return config


def _require_names(base: Path) -> None:
    """Do nothing if a release can hold the base's files.

    Raises:
        ReleaseError: one has a name that no manifest lists.
    """
    for path in other_files(base):
        if not re.fullmatch(FILE_NAME, path.name):
            raise ReleaseError(
                f"{path}: a release's files have names of letters, digits, '_', '.' and '-'. "
                "Rename it, or move it out of the base's folder."
            )


def _changes(state: AdapterState, shards: list[Weights], base: Path) -> dict[str, Change]:
    """Return what is added to each weight, by its name in the base's files.

    Raises:
        ReleaseError: the base has no such weight, or it cannot be changed by itself; or the adapter
            is a classifier.
    """
    if state.spec.heads:
        raise ReleaseError(
            f"The adapter has a head, {state.spec.heads[0].name}, for which the base's weights "
            "have no place. Load it beside its base with PEFT, as its card says; PEFT's "
            "merge_and_unload makes one classifier of both."
        )
    shapes = mergeable(base)
    found = {name: shard for shard in shards for name in shard.layout}
    changes = {}
    for module, down, up in state.pairs():
        name, shape = f"{module}.weight", (up.shape[0], down.shape[1])
        if module not in shapes:
            raise ReleaseError(
                f"{base}: {module} is no linear module with a weight of its own. It may be "
                "missing, keep its weight transposed (Conv1D), or share it with another module, "
                "which would then change too. Serve this adapter beside its base."
            )
        if name not in found:
            raise ReleaseError(
                f"{base}: there is no {name} in its weights, so that they cannot be changed one by "
                "one. Save the base anew with transformers (save_pretrained), or serve the adapter "
                "beside its base."
            )
        dtype, stored = found[name].layout[name]
        if not (shapes[module] == shape == stored and dtype.is_floating_point):
            raise ReleaseError(
                f"{base}: {name} is {stored} of {dtype}, but the adapter changes floating-point "
                f"weights of shape {shape}."
            )
        changes[name] = Change(down=down, up=up, scaling=state.spec.scaling)
    return changes


def _require_room(out: Path, size: int, base: Path) -> None:
    """Do nothing if the disk has room for the weights and the base's other files.

    Raises:
        StorageError: it has not.
    """
    needed = size + _SPARE + sum(path.stat().st_size for path in other_files(base))
    there = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{out}: the merged model needs {needed:,} bytes, but {free:,} are free there. Make "
            "room or choose another folder."
        )


def _manifest(release: Release) -> Manifest:
    """Return the manifest without files; what was measured of the adapter is not in it."""
    manifest = release.manifest
    return manifest.model_copy(
        update={
            "kind": "merged",
            "name": f"{manifest.name[:57]}-merged",  # beside the adapters, not among them
            "created": stamp(datetime.now(UTC)),
            "files": {},
            "origin": manifest.origin.model_copy(update={"parent": release.id}),
            "evaluation": Evaluation(),
            "code": Code(fedlora=__version__, torch=torch.__version__),
        }
    )


def _card(manifest: Manifest) -> str:
    base = manifest.base
    return _CARD.format(
        metadata=write_yaml(
            {
                **({"base_model": base.hub_id} if base.hub_id else {}),
                "base_model_relation": "finetune",
                "library_name": "transformers",
                "pipeline_tag": "text-generation",
                "tags": ["federated-learning", "fedlora"],
            }
        ),
        name=manifest.name,
        base=base.name,
        revision=f" at revision `{base.revision}`" if base.revision else "",
        digest=base.digest,
        parent=manifest.origin.parent,
        privacy="\n\n".join(manifest.privacy.statement),
    )


def _index(shards: list[Weights]) -> dict[str, Any]:
    return {
        "metadata": {"total_size": sum(shard.size for shard in shards)},
        "weight_map": {name: shard.path.name for shard in shards for name in shard.layout},
    }


def _in_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return a configuration, and those inside it, with another type of weights."""
    name = str(dtype).removeprefix("torch.")
    inner = {k: _in_dtype(v, dtype) for k, v in config.items() if isinstance(v, dict)}
    named = {key: name for key in ("dtype", "torch_dtype") if key in config}
    return {**config, **inner, **named}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
