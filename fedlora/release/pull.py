"""Fetching a release: verified to the byte, resumed where it stopped, there whole or not at all."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from fedlora import atomic
from fedlora.errors import ReleaseError
from fedlora.release.folder import (
    SIGNATURE,
    Release,
    require_names,
    require_same,
    verify,
)
from fedlora.release.index import Index
from fedlora.release.manifest import MANIFEST, File, Manifest
from fedlora.release.seen import SEEN, Seen
from fedlora.release.source import Source, index_of, manifest_of, parse, require_name
from fedlora.signing import PublicKey


class Puller:
    """Fetches releases of one publisher.

    Args:
        source: a store or a registry; nothing that it says is believed unsigned.
        key: the publisher's.
        home: remembers what was seen of indices, and keeps the releases that go nowhere else.
    """

    def __init__(self, source: Source, key: PublicKey, *, home: Path) -> None:
        self.source = source
        self.key = key
        self._releases = home / "releases"
        self._seen = Seen(home / SEEN)

    def index(self, name: str) -> Index:
        """Return the newest index of a name.

        Raises:
            ReleaseError: it is not the publisher's, has expired, or is older than one seen before.
        """
        return self._seen.newest(name, lambda: self._ask(name), key=self.key)

    def resolve(self, reference: str) -> str:
        """Return the release that ``NAME``, ``NAME@ALIAS`` or ``NAME@RELEASE`` means.

        Raises:
            ReleaseError: there is none, several begin so, or it is not to be used.
        """
        name, version = parse(reference)
        index = self.index(name)
        release = index.find(version)
        index.require_usable(release)
        return release

    def pull(self, reference: str, *, into: Path | None = None) -> Release:
        """Return a verified release in a folder of its own.

        A pull that broke off goes on where it stopped. What is there already is verified, not
        fetched.

        Args:
            reference: ``NAME``, ``NAME@ALIAS`` or ``NAME@RELEASE``.
            into: where the folder is to be; by default among the releases that ``home`` keeps.

        Raises:
            ReleaseError: the release cannot be had, or is not what was published; nothing of it
                stays.
            StorageError: the folder cannot be written.
        """
        release, (name, _) = self.resolve(reference), parse(reference)
        return self.fetch(release, name=name, into=into or self._releases / release)

    def fetch(self, release: str, *, name: str, into: Path) -> Release:
        """Return a name's release by its identity, in the folder ``into``; errors as ``pull``."""
        partial = into.parent / f".{into.name}.{release[:12]}.partial"
        while not into.exists():
            with _alone(partial):
                if not into.exists() and partial.exists():  # or another process was here first
                    return self._complete(release, partial, name=name, into=into)
        found = verify(into, key=self.key)
        if found.id != release:
            raise ReleaseError(
                f"{into}: release {found.id[:12]} is there already. Choose another folder."
            )
        require_name(found.manifest, name)
        return found

    def _ask(self, name: str) -> Index:
        index = index_of(self.source.index(name), name, key=self.key)
        index.require_fresh(now=datetime.now(UTC))
        return index

    def _complete(self, release: str, partial: Path, *, name: str, into: Path) -> Release:
        manifest, signature = manifest_of(self.source, release, name=name, key=self.key)
        for file_name, file in manifest.files.items():
            self._fetch_file(release, partial / file_name, file=file)
        with atomic.storage_errors(partial):
            (partial / MANIFEST).write_bytes(manifest.to_json())
            (partial / SIGNATURE).write_bytes(signature)
        try:
            require_names(partial, manifest)
        except ReleaseError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        atomic.put_folder(partial, into)
        return Release(folder=into, manifest=manifest)

    def manifest(self, reference: str) -> Manifest:
        """Return the manifest of a release.

        Raises:
            ReleaseError: there is none, it is not to be used, or another is given for it.
        """
        release, (name, _) = self.resolve(reference), parse(reference)
        return manifest_of(self.source, release, name=name, key=self.key)[0]

    def _fetch_file(self, release: str, path: Path, *, file: File) -> None:
        """Append what a file still lacks, and check all of it; what came out wrong is removed.

        A chunk is hashed and written while the next one comes.
        """
        with (
            atomic.storage_errors(path),
            path.open("a+b") as out,
            ThreadPoolExecutor(1) as beside,
        ):
            out.seek(0)
            digest, have = hashlib.file_digest(out, "sha256"), out.tell()

            def take(chunk: bytes) -> None:
                digest.update(chunk)
                out.write(chunk)

            taken = beside.submit(take, b"")
            chunks = self.source.read(release, path.name, offset=have)
            while have < file.size and (chunk := next(chunks, b"")):
                taken.result()
                taken = beside.submit(take, chunk)
                have += len(chunk)
            taken.result()
        try:
            require_same(path, File(size=have, sha256=digest.hexdigest()), file)
        except ReleaseError:
            path.unlink()
            raise


@contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Make the folder of a pull in progress, or wait for who else is at it.

    Raises:
        ReleaseError: it is somebody else's, who could change what is fetched.
        StorageError: it cannot be made.
    """
    with atomic.storage_errors(partial):
        partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid != os.geteuid():
            raise ReleaseError(f"{partial}: this is another user's. Pull into another folder.")
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            partial.rmdir()  # if nothing has come
        os.close(handle)
