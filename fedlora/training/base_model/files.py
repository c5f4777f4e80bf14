"""Where a base model's files are, and what tells two base models apart."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from fedlora.errors import BaseModelError
from fedlora.lock import BaseDigests
from fedlora.sections import EMBEDDED

_WEIGHTS = ("*.safetensors",)
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "vocab.json", "vocab.txt")
_TOKENS = (
    *_TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)
"""What decides a text's tokens; ``tokenizer_config.json`` may hold the chat template, too."""
_IDENTITY = ("config.json", *_WEIGHTS, *_TOKENS, "chat_template*")
_SMALL = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt")
_DOWNLOADED = (*_SMALL, *_WEIGHTS)
_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_ONE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_INDICES = ".index.json"


def resolve(reference: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the folder with the base model's configuration, weights and tokenizer.

    Args:
        reference: ``embedded``, a local folder, or a hub id, which is downloaded unless cached.
        revision: branch, tag or commit of a hub id.
        weights: whether they are needed.

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
        folder = _download(reference, revision, _DOWNLOADED if weights else _SMALL)
    _require_complete(folder, reference, weights=weights)
    return folder


def digest(folder: Path) -> str:
    """Return the SHA-256, in hexadecimal, over configuration, weights, tokenizer and template.

    Equal digests mean that the same text gives the same tokens and the same logits.

    Raises:
        BaseModelError: a file cannot be read.
    """
    return _digest_of(folder, _IDENTITY)


def part_digests(folder: Path) -> BaseDigests:
    """Return digests of a base model's weights, tokenizer and chat template, each by itself.

    Raises:
        BaseModelError: a file cannot be read.
    """
    template = _chat_template(folder)
    return BaseDigests(
        weights_digest=_digest_of(folder, _WEIGHTS),
        tokenizer_digest=_digest_of(folder, _TOKENS),
        chat_template_digest=hashlib.sha256(template.encode()).hexdigest() if template else None,
    )


def _digest_of(folder: Path, patterns: Iterable[str]) -> str:
    """Hash names and contents of the files that fit a pattern."""
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    total = hashlib.sha256()
    try:
        for path in files:
            content = _content_digest(path, path.stat().st_mtime_ns)
            total.update(f"{content}  {path.name}\n".encode())
    except OSError as error:
        raise BaseModelError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    return total.hexdigest()


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


@lru_cache(maxsize=512)
def _content_digest(path: Path, version: int) -> str:  # noqa: ARG001 - of the cache's key
    """Hash a file once, while its modification time stays: weights may be large."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chat_template(folder: Path) -> str:
    """Return the template that transformers takes: its own file before the configuration's key.

    Several by name are given as canonical JSON; where there is none, nothing.
    """
    own, configuration = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if own.is_file():
            return own.read_text(encoding="utf-8")
        if not configuration.is_file():
            return ""
        template = json.loads(configuration.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise BaseModelError(f"{folder}: its chat template cannot be read ({error}).") from None
    named = isinstance(template, list)
    return json.dumps(template, sort_keys=True) if named else str(template or "")


def _download(reference: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Fetch what a base model needs from the hub, or find it in the hub's cache."""
    try:
        return Path(
            snapshot_download(
                reference,
                revision=revision,
                allow_patterns=list(patterns),
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


def _require_complete(folder: Path, reference: str, *, weights: bool) -> None:
    """Refuse a folder that lacks the configuration, safetensors weights or the tokenizer."""
    for patterns, content in (
        (("config.json",), "config.json"),
        *([(_WEIGHTS, "weights in safetensors format")] if weights else []),
        (_TOKENIZER, "tokenizer"),
    ):
        if not any(found for pattern in patterns for found in folder.glob(pattern)):
            raise BaseModelError(
                f"base_model: {reference} has no {content} (looked in {folder} for "
                f"{', '.join(patterns)}). Name a complete Hugging Face model folder."
            )
