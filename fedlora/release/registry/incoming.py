"""Releases on their way in: whatever becomes of an upload, nothing of it stays."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Self

from grpc import StatusCode

from fedlora.atomic import storage_errors
from fedlora.errors import ReleaseError
from fedlora.release.folder import SIGNATURE
from fedlora.release.manifest import MANIFEST, Manifest
from fedlora.release.registry.refused import Refused


class Incoming:
    """A store's folder ``incoming/``, of the one registry that serves the store.

    Args:
        store: the store's folder.
        most: uploads at once.

    Raises:
        ReleaseError: another registry serves the store.
        StorageError: the folder cannot be written.
    """

    def __init__(self, store: Path, *, most: int) -> None:
        self.path = store / "incoming"
        self._most, self._under_way = most, 0
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ReleaseError(
                f"{store}: another registry serves this store. Stop that one first."
            ) from None
        for left in self.path.glob("[!.]*"):  # by a registry that was killed
            shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Let another registry have the store."""
        os.close(self._lock)

    @contextmanager
    def upload(self, manifest: Manifest, signature: bytes) -> Iterator["Upload"]:
        """Yield a release's folder to be filled; it has gone after the block.

        Raises:
            Refused: there are too many uploads already.
            StorageError: it cannot be written.
        """
        if self._under_way >= self._most:
            raise Refused(
                StatusCode.RESOURCE_EXHAUSTED, f"More than {self._most} uploads at once. Wait."
            )
        self._under_way += 1
        try:
            with self._folder() as folder:
                with storage_errors(folder):
                    (folder / MANIFEST).write_bytes(manifest.to_json())
                    (folder / SIGNATURE).write_bytes(signature)
                with Upload(
                    folder, manifest, begin=lambda name: (folder / name).open("xb")
                ) as upload:
                    yield upload
        finally:
            self._under_way -= 1

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with storage_errors(self.path):
            folder = Path(tempfile.mkdtemp(dir=self.path))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Upload:
    """Files that come in, piece by piece; none gets larger than its manifest says.

    Use it in ``with``.

    Args:
        folder: where the release is in the end.
        manifest: of the release, signed by its publisher.
        begin: opens what a file's pieces are written to.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, begin: Callable[[str], BinaryIO]
    ) -> None:
        self.folder = folder
        self._files, self._begin = manifest.files, begin
        self._begun: dict[str, int] = {}
        self._name = ""
        self._open: BinaryIO | None = None

    @classmethod
    def again(cls, folder: Path, manifest: Manifest) -> Self:
        """Return the upload of a release whose folder is there: nothing of it is written."""
        return cls(folder, manifest, begin=lambda _: Path(os.devnull).open("wb"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, name: str, data: bytes) -> None:
        """Append to a file.

        Raises:
            Refused: there is no such file, it gets too large, another was begun since, or nothing
                comes.
            StorageError: it cannot be written.
        """
        if name not in self._files:
            raise Refused(StatusCode.INVALID_ARGUMENT, f"The manifest knows no file {name!r:.80}.")
        if not data and (name in self._begun or self._files[name].size):
            raise Refused(
                StatusCode.INVALID_ARGUMENT,
                f"{name}: only a file that is empty has an empty piece.",
            )
        with storage_errors(self.folder / name):
            self._turn_to(name).write(data)
        self._begun[name] += len(data)
        if self._begun[name] > self._files[name].size:
            raise Refused(
                StatusCode.INVALID_ARGUMENT,
                f"{name} has {self._files[name].size:,} bytes by its manifest, but more came.",
            )

    def finish(self) -> None:
        """Close the last file.

        Raises:
            Refused: something has not come.
            StorageError: it cannot be written.
        """
        with storage_errors(self.folder):
            self._close()
        for name, file in self._files.items():
            if self._begun.get(name) != file.size:
                raise Refused(
                    StatusCode.INVALID_ARGUMENT, f"{name} has not come, or not all of it."
                )

    def _close(self) -> None:
        if self._open is not None:
            self._open.close()

    def _turn_to(self, name: str) -> BinaryIO:
        if self._open is None or self._name != name:
            if name in self._begun:
                raise Refused(
                    StatusCode.INVALID_ARGUMENT, f"{name}: its pieces must come one after another."
                )
            self._close()
            self._open, self._name = self._begin(name), name
            self._begun[name] = 0
        return self._open
