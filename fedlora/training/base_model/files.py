"""Where a base model's files are, and what tells two base models apart."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from fedlora.errors import BaseModelError
from fedlora.recipe import EMBEDDED

_WEIGHTS = ("*.safetensors",)
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt")
_IDENTITY = (
    "config.json",
    *_WEIGHTS,
    *_TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template*",
)
_SMALL = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt")
_DOWNLOADED = (*_SMALL, *_WEIGHTS)
_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_INDICES = ".index.json"


def resolve(reference: str, revision: str | None) -> Path:
    """Return the folder with the base model's configuration, weights and tokenizer.

    Args:
        reference: ``embedded``, a local folder, or a hub id, which is downloaded unless cached.
        revision: branch, tag or commit of a hub id.

    Raises:
        BaseModelError: there is no such model, it cannot be downloaded, or it is incomplete.
    """
    local = Path(reference).expanduser()
    if reference == EMBEDDED:
        folder = Path(__file__).parents[1] / "embedded"
    elif local.is_dir():
        folder = local
    elif local.exists() or local.is_absolute() or reference.count("/") != 1:
        raise BaseModelError(
            f"base_model: {reference} is neither a folder nor a hub id of the form org/name. "
            "Check the path, or download the model first."
        )
    else:
        folder = _download(reference, revision)
    _require_complete(folder, reference)
    return folder


def digest(folder: Path) -> str:
    """Return the SHA-256, in hexadecimal, over configuration, weights, tokenizer and template.

    Equal digests mean that the same text gives the same tokens and the same logits.

    Raises:
        BaseModelError: a file cannot be read.
    """
    files = {path for pattern in _IDENTITY for path in folder.glob(pattern)}
    try:
        versions = tuple((path, path.stat().st_mtime_ns) for path in sorted(files))
        return _digest_of(versions)
    except OSError as error:
        raise BaseModelError(f"{error.filename}: cannot be read ({error.strerror}).") from None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a base model's weights are loaded from, as transformers chooses them.

    Raises:
        BaseModelError: the index of several files is broken, or names one that is not there.
    """
    index = folder / _INDEX
    if (folder / _ONE_FILE).is_file() or not index.is_file():
        return [folder / _ONE_FILE]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [folder / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BaseModelError(f"{index}: an index of safetensors files was expected.") from None
    if len(paths) != len(names) or not all(path.is_file() for path in paths):
        raise BaseModelError(f"{index}: it names files that are not there. Get the model again.")
    return paths


def other_files(folder: Path) -> list[Path]:
    """Return the files that belong to a base model beside its weights: all but other copies of it.

    Configuration, tokenizer, chat template, and the terms that it is licensed under.
    """
    found = {path for pattern in (*_SMALL, *_TERMS) for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file() and not path.name.endswith(_INDICES))


@lru_cache(maxsize=8)
def _digest_of(versions: tuple[tuple[Path, int], ...]) -> str:
    """Hash names and contents; cached by modification time, because weights may be large."""
    total = hashlib.sha256()
    for path, _ in versions:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{content}  {path.name}\n".encode())
    return total.hexdigest()


def _download(reference: str, revision: str | None) -> Path:
    """Fetch what a base model needs from the hub, or find it in the hub's cache."""
    try:
        return Path(
            snapshot_download(
                reference,
                revision=revision,
                allow_patterns=list(_DOWNLOADED),
                ignore_patterns=["*/*"],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        version = f" at revision {revision}" if revision else ""
        raise BaseModelError(
            f"base_model: there is no folder {reference}, and the hub's {reference}{version} "
            f"cannot be downloaded ({reason}). Check the name, the revision, the network and, for "
            "a gated model, your access (hf auth login); or name a folder that has the model."
        ) from None


def _require_complete(folder: Path, reference: str) -> None:
    """Refuse a folder that lacks the configuration, safetensors weights or the tokenizer."""
    for patterns, content in (
        (("config.json",), "config.json"),
        (_WEIGHTS, "weights in safetensors format"),
        (_TOKENIZER, "tokenizer"),
    ):
        if not any(found for pattern in patterns for found in folder.glob(pattern)):
            raise BaseModelError(
                f"base_model: {reference} has no {content} (looked in {folder} for "
                f"{', '.join(patterns)}). Name a complete Hugging Face model folder."
            )
