"""A folder of releases: nothing in it is ever rewritten, and what is half-written is never seen.

::

    registry.yaml                where and whose it is
    releases/<SHA-256>/          a release each
    index/<name>/00000001.json   each version of a name's sealed index

A release is there for readers once an index lists it. Of two that commit the same version, the
first wins, and the other is told.
"""

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.folder import SIGNATURE, Release, verify
from fedlora.release.index import Index
from fedlora.release.manifest import MANIFEST
from fedlora.release.registry_file import FILE, RegistryFile
from fedlora.release.source import is_release
from fedlora.sections import NAME
from fedlora.signing import PublicKey, new_key

_CHUNK = 2**20
_LOOK = 1.0
"""Seconds between looks for a new index."""


class Store:
    """A store's folder; a ``Target``.

    Args:
        path: the folder.
        key: the publisher's: only what is signed with it comes in.
    """

    def __init__(self, path: Path, *, key: PublicKey) -> None:
        self.path = path
        self.key = key

    def names(self) -> Sequence[str]:
        firsts = (self.path / "index").glob("*/00000001.json")  # a kill can leave a folder without
        return sorted(path.parent.name for path in firsts)

    def index(self, name: str) -> bytes:
        paths = self._versions(name)
        if not paths:
            known = ", ".join(self.names()) or "none"
            raise ReleaseError(f"{self.path}: there is no {name!r:.80}, only: {known}.")
        return paths[-1].read_bytes()

    def manifest(self, release: str) -> tuple[bytes, bytes]:
        folder = self._release(release)
        return (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        with self.open(release, file) as content:
            content.seek(offset)
            while chunk := content.read(_CHUNK):
                yield chunk

    def open(self, release: str, file: str) -> BufferedReader:
        """Open a release's file to be read; errors as ``read``."""
        folder = self._release(release)
        if file not in {path.name for path in folder.iterdir()}:
            raise ReleaseError(f"{self.path}: release {release[:12]} has no file {file!r:.80}.")
        return (folder / file).open("rb")

    def watch(self, name: str, *, after: int) -> Iterator[bytes]:
        self.index(name)  # or there is nothing to watch
        while True:
            for envelope in self.since(name, after=after):
                yield envelope
                after += 1
            time.sleep(_LOOK)

    def publish(self, folder: Path, envelope: bytes) -> None:
        release = verify(folder, key=self.key)
        index = self._next(envelope)
        if not index.is_usable(release.id) or index.name != release.manifest.name:
            raise ReleaseError(f"{folder}: the index does not list this release.")
        self._take(release)
        self._commit(index, envelope)

    def commit(self, envelope: bytes) -> None:
        index = self._next(envelope)
        for release, entry in index.releases.items():
            if not entry.collected and not (self.path / "releases" / release).is_dir():
                raise ReleaseError(f"{self.path}: there is no release {release[:12]} to list.")
        self._commit(index, envelope)

    def since(self, name: str, *, after: int) -> Iterator[bytes]:
        """Yield each sealed index of a name that is there with a version above ``after``."""
        while (path := self._version(name, after + 1)).exists():
            yield path.read_bytes()
            after += 1

    def history(self, name: str) -> Sequence[Index]:
        """Return all versions of a name's index, oldest first."""
        paths = self._versions(name)
        return [Index.unseal(p.read_bytes(), key=self.key, source=str(p)) for p in paths]

    def remove(self, release: str) -> None:
        """Remove the files of a release that an index has as collected."""
        shutil.rmtree(self.path / "releases" / release, ignore_errors=True)

    def _next(self, envelope: bytes) -> Index:
        """Return a sealed index that follows the newest.

        Raises:
            ReleaseError: it does not.
        """
        index = Index.unseal(envelope, key=self.key, source="the index")
        paths = self._versions(index.name)
        if paths:
            index.require_follows(
                Index.unseal(paths[-1].read_bytes(), key=self.key, source=str(paths[-1]))
            )
        elif index.version != 1:
            raise ReleaseError(f"{self.path}: {index.name} begins with version 1.")
        return index

    def _commit(self, index: Index, envelope: bytes) -> None:
        path = self._version(index.name, index.version)
        if not atomic.create_file(path, envelope):
            raise ReleaseError(
                f"{index.name}: somebody else was quicker with version {index.version}. Try again."
            )

    def _take(self, release: Release) -> None:
        """Copy a release in, unless it is there; it is checked again once it is."""
        place = self.path / "releases" / release.id
        if place.is_dir():
            return
        with atomic.new_folder(place) as folder:
            for path in release.folder.iterdir():
                shutil.copyfile(path, folder / path.name, follow_symlinks=False)
            verify(folder, key=self.key)

    def _release(self, release: str) -> Path:
        folder = self.path / "releases" / release
        if not is_release(release) or not folder.is_dir():
            raise ReleaseError(f"{self.path}: there is no release {release[:64]!r}.")
        return folder

    def _version(self, name: str, version: int) -> Path:
        return self._index(name) / f"{version:08}.json"

    def _versions(self, name: str) -> list[Path]:
        return sorted(self._index(name).glob("[0-9]*.json"))

    def _index(self, name: str) -> Path:
        if not re.fullmatch(NAME, name):
            raise ReleaseError(f"{self.path}: {name!r:.80} is no name.")
        return self.path / "index" / name


def new_store(path: Path, *, key: Path) -> PublicKey:
    """Make a store's folder, with a registry file that says whose it is.

    Args:
        path: a new folder, or an empty one.
        key: the publishing key's file; it is made unless there is one.

    Raises:
        EnrolmentError: what is at ``key`` is no key.
        ReleaseError: there is something at ``path`` already.
        StorageError: they cannot be written.
    """
    if path.exists() and any(path.iterdir()):
        raise ReleaseError(f"{path}: there is something already. Name a new folder.")
    public = new_key(key)
    RegistryFile(publisher=public.text).write(path / FILE)
    return public
