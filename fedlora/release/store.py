"""A folder of releases: nothing in it is ever rewritten, and what is half-written is never seen.

::

    registry.yaml                where and whose it is
    releases/<SHA-256>/          a release each
    index/<name>/00000001.json   each version of a name's sealed index

A release is there for readers once an index lists it. Of two that commit the same version, the
first wins, and the other is told. Whoever adds to a folder holds its ``.lock``; what else begins
with a dot there was left by somebody who was killed, and is removed by the next one.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.folder import (
    LARGEST_SIGNATURE,
    SIGNATURE,
    small_file,
    verify,
)
from fedlora.release.index import Index
from fedlora.release.manifest import LARGEST_MANIFEST, MANIFEST, is_release
from fedlora.release.registry_file import FILE, RegistryFile
from fedlora.release.sealed import LARGEST_ENVELOPE
from fedlora.sections import NAME
from fedlora.signing import PublicKey, new_key

_CHUNK = 2**20
_LOOK = 1.0
"""Seconds between looks for a new index."""
_DAY = 24 * 60 * 60


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
        return small_file(paths[-1], most=LARGEST_ENVELOPE)

    def manifest(self, release: str) -> tuple[bytes, bytes]:
        folder = self._release(release)
        signature = small_file(folder / SIGNATURE, most=LARGEST_SIGNATURE)
        return small_file(folder / MANIFEST, most=LARGEST_MANIFEST), signature

    def read(self, release: str, file: str, *, offset: int = 0) -> Iterator[bytes]:
        try:
            with self.open(release, file) as content:
                content.seek(offset)
                while chunk := content.read(_CHUNK):
                    yield chunk
        except OSError as error:
            raise ReleaseError(
                f"{self.path}: {file} of release {release[:12]} cannot be read ({error.strerror})."
            ) from None

    def open(self, release: str, file: str) -> BufferedReader:
        """Open a release's file to be read.

        Raises:
            ReleaseError: there is no such file.
            OSError: it cannot be read.
        """
        folder = self._release(release)
        if file not in {path.name for path in folder.iterdir()}:
            raise ReleaseError(f"{self.path}: release {release[:12]} has no file {file!r:.80}.")
        return (folder / file).open("rb")

    def watch(self, name: str, *, after: int) -> Iterator[bytes | None]:
        self.index(name)  # or there is nothing to watch
        while True:
            for envelope in self.since(name, after=after):
                yield envelope
                after += 1
            yield None
            time.sleep(_LOOK)

    def publish(self, folder: Path, envelope: bytes) -> None:
        self._publish(folder, envelope, bring=self._copy)

    def adopt(self, folder: Path, envelope: bytes) -> None:
        """Do as ``publish`` does with a folder on the store's disk, which may go: it is moved."""
        self._publish(folder, envelope, bring=atomic.put_folder)

    def commit(self, envelope: bytes) -> None:
        index = self._next(envelope)
        if new := index.releases.keys() - self._listed(index.name):
            raise ReleaseError(f"{self.path}: {min(new)[:12]} is listed, but was not published.")
        self._commit(index, envelope)

    def since(self, name: str, *, after: int) -> Iterator[bytes]:
        """Yield each sealed index of a name that is there with a version above ``after``."""
        while (path := self._version(name, after + 1)).exists():
            yield small_file(path, most=LARGEST_ENVELOPE)
            after += 1

    def remove(self, release: str) -> None:
        """Remove the files of a release that an index has as collected."""
        shutil.rmtree(self.path / "releases" / release, ignore_errors=True)

    def has(self, release: str) -> bool:
        """Tell whether the files of a release are there, listed or not."""
        return (self.path / "releases" / release).is_dir()

    def sweep(self) -> None:
        """Remove what publications left that were killed, and releases that no index lists.

        What is whole and younger than a day may be listed yet, and stays.

        Raises:
            ReleaseError: an index cannot be read.
            StorageError: the folder cannot be written.
        """
        for name in self.names():
            with _alone(self._index(name)):
                pass
        with _alone(self.path / "releases"):
            listed = {release for name in self.names() for release in self._listed(name)}
            for folder in (self.path / "releases").glob("[!.]*"):
                with suppress(FileNotFoundError):  # it was collected
                    if folder.name not in listed and time.time() - folder.stat().st_mtime > _DAY:
                        shutil.rmtree(folder, ignore_errors=True)

    def _publish(
        self, folder: Path, envelope: bytes, *, bring: Callable[[Path, Path], None]
    ) -> None:
        """Verify a release, bring its folder in unless it is there, and commit its index."""
        release = verify(folder, key=self.key)
        index = self._next(envelope)
        if not index.is_usable(release.id) or index.name != release.manifest.name:
            raise ReleaseError(f"{folder}: the index does not list this release.")
        place = self.path / "releases" / release.id
        with _alone(place.parent), atomic.storage_errors(place):
            if place.is_dir():
                os.utime(place)  # it is not left over
            else:
                bring(folder, place)
        self._commit(index, envelope)

    def _copy(self, folder: Path, place: Path) -> None:
        """Copy a release, which is verified again: its folder may have changed meanwhile."""
        with atomic.new_folder(place) as copy:
            for path in folder.iterdir():
                shutil.copyfile(path, copy / path.name, follow_symlinks=False)
            verify(copy, key=self.key)

    def _next(self, envelope: bytes) -> Index:
        """Return a sealed index that follows the newest.

        Raises:
            ReleaseError: it does not.
        """
        index = Index.unseal(envelope, key=self.key, source="the index")
        before = self._newest(index.name)
        if before:
            index.require_follows(before)
        elif index.version != 1:
            raise ReleaseError(f"{self.path}: {index.name} begins with version 1.")
        return index

    def _listed(self, name: str) -> set[str]:
        newest = self._newest(name)
        return set(newest.releases) if newest else set()

    def _newest(self, name: str) -> Index | None:
        if not self._versions(name):
            return None
        return Index.unseal(self.index(name), key=self.key, source=f"{self.path}: {name}")

    def _commit(self, index: Index, envelope: bytes) -> None:
        path = self._version(index.name, index.version)
        with _alone(path.parent):
            written = atomic.create_file(path, envelope)
        if not written:
            raise ReleaseError(
                f"{index.name}: somebody else was quicker with version {index.version}. Try again."
            )

    def _release(self, release: str) -> Path:
        folder = self.path / "releases" / release
        if not is_release(release) or not self.has(release):
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let nobody else add to a folder during the block, and remove what who was killed left."""
    with atomic.alone(folder / ".lock"):
        for left in folder.glob(".?*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif left.name != ".lock":
                left.unlink(missing_ok=True)
        yield
