"""A release's folder: what is in it is what its manifest says, to the byte, and nothing else.

::

    adapter_config.json, adapter_model.safetensors   what PEFT, vLLM and LoRAX load
    README.md                                        the model card
    provenance.json                                  in-toto statement, SLSA's predicate
    manifest.json                                    canonical JSON; its SHA-256 is the release
    manifest.sig                                     the publisher's signature, base64
"""

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.manifest import LARGEST_MANIFEST, MANIFEST, File, Manifest
from fedlora.release.sealed import MANIFEST_TYPE, require_signed, sign
from fedlora.signing import PublicKey, Signer

SIGNATURE = "manifest.sig"
LARGEST_SIGNATURE = 200
_CHUNK = 2**20


@dataclass(frozen=True)
class Release:
    """A release whose folder was verified."""

    folder: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """SHA-256 of the manifest, in hexadecimal."""
        return self.manifest.release


def files_of(folder: Path) -> dict[str, File]:
    """Return size and digest of each file of a folder, the manifest and its signature left out."""
    names = sorted(path.name for path in folder.iterdir())
    return {name: _file(folder / name) for name in names if name not in {MANIFEST, SIGNATURE}}


def sign_folder(folder: Path, manifest: Manifest, *, signer: Signer) -> None:
    """Write a manifest into its release's folder, and the signature over it.

    Raises:
        StorageError: they cannot be written.
    """
    payload = manifest.to_json()
    signature = _text_of(sign(payload, MANIFEST_TYPE, signer=signer))
    atomic.write_file(folder / MANIFEST, payload)
    atomic.write_file(folder / SIGNATURE, signature)


def verify(folder: Path, *, key: PublicKey) -> Release:
    """Return a release after its signature and each byte of it were checked; offline.

    Raises:
        ReleaseError: a byte is another, a file is missing, too many or a link, or the manifest is
            not this publisher's.
    """
    payload = small_file(folder / MANIFEST, most=LARGEST_MANIFEST)
    text = small_file(folder / SIGNATURE, most=LARGEST_SIGNATURE)
    manifest = signed_manifest(payload, text, key=key, source=str(folder / MANIFEST))
    return _complete(folder, manifest)


def unsigned(folder: Path) -> Release | None:
    """Return a release whose bytes were checked against its manifest, whoever has written that.

    None where there is no manifest. It is for what has been verified before, or is one's own.

    Raises:
        ReleaseError: a byte is another, a file is missing, too many or a link.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = Manifest.from_json(small_file(path, most=LARGEST_MANIFEST), source=str(path))
    return _complete(folder, manifest)


def _complete(folder: Path, manifest: Manifest) -> Release:
    """Return a release whose files are what its manifest says."""
    require_names(folder, manifest)
    for name, file in manifest.files.items():
        require_file(folder / name, file)
    return Release(folder=folder, manifest=manifest)


def require_names(folder: Path, manifest: Manifest) -> None:
    """Do nothing if a folder has the files that a manifest lists, whatever is in them.

    Raises:
        ReleaseError: one is missing, or there is another.
    """
    found = {path.name for path in folder.iterdir()} - {MANIFEST, SIGNATURE}
    for name in sorted(manifest.files.keys() - found):
        raise ReleaseError(
            f"{folder / name}: the file is missing. Remove the folder, and fetch the release again."
        )
    for name in sorted(found - manifest.files.keys()):
        raise ReleaseError(
            f"{folder / name}: the manifest knows no such file, so that nobody has signed it. "
            "Remove it, or fetch the release again."
        )


def signed_manifest(payload: bytes, signature: bytes, *, key: PublicKey, source: str) -> Manifest:
    """Return a manifest that the key's owner has signed.

    Args:
        payload: of ``manifest.json``.
        signature: of ``manifest.sig``.
        key: the publisher's.
        source: what error messages call it.

    Raises:
        ReleaseError: it is no manifest, or somebody else's.
    """
    try:
        raw = base64.b64decode(signature.removesuffix(b"\n"), validate=True)
    except ValueError:
        raw = b""
    if _text_of(raw) != signature:  # of two spellings, each is another file
        raw = b""
    require_signed(payload, MANIFEST_TYPE, raw, key=key, source=source)
    return Manifest.from_json(payload, source=source)


def require_file(path: Path, file: File) -> None:
    """Do nothing if a file is what a manifest says.

    Raises:
        ReleaseError: it is something else.
    """
    require_same(path, _file(path), file)


def require_same(path: Path, found: File, file: File) -> None:
    """Do nothing if what was found at ``path`` is what a manifest says; errors as above."""
    if found != file:
        raise ReleaseError(
            f"{path}: this is not what was published: {file.size:,} bytes with SHA-256 "
            f"{file.sha256[:12]}… were, these are {found.size:,} with {found.sha256[:12]}…. "
            "Remove the folder, and fetch the release again."
        )


def _text_of(signature: bytes) -> bytes:
    """Return what ``manifest.sig`` holds."""
    return base64.b64encode(signature) + b"\n"


def _file(path: Path) -> File:
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return File(size=size, sha256=digest.hexdigest())


def small_file(path: Path, *, most: int) -> bytes:
    """Read a file that is to be small.

    Raises:
        ReleaseError: it is larger, or there is no plain file.
    """
    content = b""
    for chunk in _chunks(path):
        content += chunk
        if len(content) > most:
            raise ReleaseError(f"{path}: more than {most:,} bytes are not plausible.")
    return content


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield a plain file's content; neither a link nor a pipe is followed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:  # noqa: PTH123 - of a descriptor
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ReleaseError(f"{path}: a plain file was expected.")
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise ReleaseError(f"{path}: it cannot be read ({error.strerror}).") from None
