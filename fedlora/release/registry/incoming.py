"""Releases on their way in: whatever becomes of an upload, nothing of it stays."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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

    Raises:
        ReleaseError: another registry serves the store.
        StorageError: the folder cannot be written.
    """

    def __init__(self, store: Path) -> None:
        self.path = store / "incoming"
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
            StorageError: it cannot be written.
        """
        with storage_errors(self.path):
            folder = Path(tempfile.mkdtemp(dir=self.path))
        try:
            with storage_errors(self.path):
                (folder / MANIFEST).write_bytes(manifest.to_json())
                (folder / SIGNATURE).write_bytes(signature)
            upload = Upload(folder, manifest)
            try:
                yield upload
            finally:
                upload.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Upload:
    """Files that come in, piece by piece; none gets larger than its manifest says.

    Args:
        folder: where they go.
        manifest: of the release, signed by its publisher.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._files = manifest.files
        self._begun: dict[str, int] = {}
        self._open: BinaryIO | None = None

    def write(self, name: str, data: bytes) -> None:
        """Append to a file.

        Raises:
            Refused: there is no such file, it gets too large, or another was begun since.
            StorageError: it cannot be written.
        """
        if name not in self._files:
            raise Refused(StatusCode.INVALID_ARGUMENT, f"The manifest knows no file {name!r:.80}.")
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
            self.close()
        for name, file in self._files.items():
            if self._begun.get(name) != file.size:
                raise Refused(
                    StatusCode.INVALID_ARGUMENT, f"{name} has not come, or not all of it."
                )

    def close(self) -> None:
        """Close the file that is open."""
        if self._open is not None:
            self._open.close()

    def _turn_to(self, name: str) -> BinaryIO:
        if self._open is None or Path(self._open.name).name != name:
            if name in self._begun:
                raise Refused(
                    StatusCode.INVALID_ARGUMENT, f"{name}: its pieces must come one after another."
                )
            self.close()
            self._begun[name] = 0
            self._open = (self.folder / name).open("xb")
        return self._open
