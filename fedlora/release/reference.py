"""What a user means by a folder, or by ``NAME``, ``NAME@ALIAS`` or ``NAME@RELEASE``."""

from pathlib import Path

from fedlora.release.folder import Release, verify
from fedlora.release.home import publisher_key, pull
from fedlora.release.manifest import LARGEST_MANIFEST, MANIFEST, Manifest


def release_at(reference: str, *, registry: Path | None = None, key: str | None = None) -> Release:
    """Return the verified release that a folder is, or that a registry has.

    Args:
        reference: a release's folder, or else what a registry is asked for.
        registry: a registry file or a store's folder; by default what ``FEDLORA_REGISTRY`` names.
        key: the publisher's public key, or a file with it, that a folder is verified with; by
            default the registry file's.

    Raises:
        ReleaseError: there is none, or it is not what the publisher signed.
        EnrolmentError: this is no key.
    """
    folder = Path(reference)
    if folder.is_dir():
        return verify(folder, key=publisher_key(key, registry=registry))
    return pull(reference, registry=registry)


def folder_at(reference: str, *, registry: Path | None = None) -> Path:
    """Return the folder that a user names, as it is, or that of a verified release of a registry.

    Raises:
        ReleaseError: there is neither.
    """
    folder = Path(reference)
    return folder if folder.is_dir() else pull(reference, registry=registry).folder


def unverified(folder: Path) -> Manifest | None:
    """Return what a folder's manifest says, whoever wrote it; None if there is none.

    Raises:
        ReleaseError: there is something else.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return Manifest.from_json(file.read(LARGEST_MANIFEST + 1), source=str(path))
