"""Data sets of the Hugging Face Hub, fetched into the Hub's own cache."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from fedlora.errors import DataError


def fetched(reference: str, *, revision: str | None, suffixes: Iterable[str]) -> Path:
    """Return the folder with a data set's files of these suffixes; nothing else is fetched.

    Args:
        reference: ``org/name``.
        revision: branch, tag or commit.
        suffixes: with their dots.

    Raises:
        DataError: it cannot be fetched and is not in the cache.
    """
    patterns = [f"*{suffix}" for suffix in suffixes]
    try:
        return Path(
            snapshot_download(
                reference, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        version = f" at revision {revision}" if revision else ""
        raise DataError(
            f"datasets: there is no file or folder {reference} here, and the Hub's data set "
            f"{reference}{version} cannot be fetched ({reason}). Check the path or the name, the "
            "revision, the network and, for a gated data set, your access (hf auth login); or name "
            "a folder that has its files."
        ) from None
