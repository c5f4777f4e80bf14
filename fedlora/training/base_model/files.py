"""Where a base model's files are, and what tells two base models apart."""

import hashlib
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
_DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt")


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
