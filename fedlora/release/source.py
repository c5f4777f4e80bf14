"""Where releases are kept, as their readers and their publisher see it: a folder or a service.

Nothing that a source says is believed: manifests and indices are signed by the publisher, files
have their digests in the manifest.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from fedlora.errors import ReleaseError
from fedlora.release.folder import signed_manifest
from fedlora.release.index import Index
from fedlora.release.manifest import Manifest
from fedlora.sections import NAME
from fedlora.signing import PublicKey

_REFERENCE = re.compile(rf"(?P<name>{NAME})(@(?P<version>{NAME}))?")


class Source(Protocol):
    """Where releases can be read."""

    def names(self) -> Sequence[str]:
        """Return the names that releases are published under, sorted."""

    def index(self, name: str) -> bytes:
        """Return the newest sealed index of a name.

        Raises:
            ReleaseError: there is no such name, or the source does not answer.
        """

    def manifest(self, release: str) -> tuple[bytes, bytes]:
        """Return what ``manifest.json`` and ``manifest.sig`` of a release hold.

        Raises:
            ReleaseError: there is no such release, or the source does not answer.
        """

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's content from an offset in bytes.

        Raises:
            ReleaseError: there is no such file, or the source does not answer.
        """

    def watch(self, name: str, *, after: int) -> Iterator[bytes | None]:
        """Yield each sealed index of a name whose version is above ``after``, as it comes.

        It goes on until the reader stops; None comes now and then where there is nothing new.

        Raises:
            ReleaseError: there is no such name, or the source does not answer.
        """


class Target(Source, Protocol):
    """Where releases can be published."""

    def publish(self, folder: Path, envelope: bytes) -> None:
        """Take a signed release's folder, and the index that lists it.

        Raises:
            ReleaseError: the release or the index is refused; nothing of it stays visible.
        """

    def commit(self, envelope: bytes) -> None:
        """Take the next version of an index.

        Raises:
            ReleaseError: it does not follow the newest, or is not the publisher's.
        """


def index_of(envelope: bytes, name: str, *, key: PublicKey) -> Index:
    """Return the index that is in an envelope, once it is known to be this name's.

    Raises:
        ReleaseError: it is not the publisher's, or another name's.
    """
    index = Index.unseal(envelope, key=key, source=f"index of {name}")
    if index.name != name:
        raise ReleaseError(f"The index of {name} was asked for; this is of {index.name}.")
    return index


def manifest_of(
    source: Source, release: str, *, name: str, key: PublicKey
) -> tuple[Manifest, bytes]:
    """Return the manifest of a name's release, once it is known to be its own, and its signature.

    Raises:
        ReleaseError: there is none, it is not the publisher's, or another is given for it; or it is
            another name's release.
    """
    payload, signature = source.manifest(release)
    manifest = signed_manifest(payload, signature, key=key, source=release[:12])
    if manifest.release != release:
        raise ReleaseError(f"{release[:12]} was asked for, {manifest.release[:12]} came.")
    require_name(manifest, name)
    return manifest, signature


def require_name(manifest: Manifest, name: str) -> None:
    """Do nothing if a manifest is of a name's release.

    Raises:
        ReleaseError: it is of another's, as if its publisher had been made to list it here.
    """
    if manifest.name != name:
        raise ReleaseError(
            f"{name} lists {manifest.release[:12]}, which is a release of {manifest.name}. Do not "
            "use it, and ask the publisher."
        )


def parse(reference: str) -> tuple[str, str]:
    """Return name and version of ``NAME``, ``NAME@ALIAS`` or ``NAME@RELEASE``.

    Raises:
        ReleaseError: it has another form.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ReleaseError(
            f"{reference!r:.100}: NAME, NAME@ALIAS or NAME@RELEASE was expected, such as "
            "demo@production."
        )
    return match["name"], match["version"] or "latest"
