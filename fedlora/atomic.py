"""Files and folders that appear whole or not at all, also when the disk fills or power fails."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.errors import StorageError

_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


def write_file(path: Path, *content: bytes | memoryview | str) -> None:
    """Write ``content``, piece by piece, so that a reader sees the old file or the whole new one.

    Raises:
        StorageError: the file cannot be written; nothing half-written stays.
    """
    pieces = (piece.encode() if isinstance(piece, str) else piece for piece in content)
    _replace(path, pieces, mode=0o666 & ~_UMASK)


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that its owner alone can read, unless there is one: of several, the first stays.

    Raises:
        StorageError: the file cannot be written; nothing half-written stays.
    """
    _create(path, content, mode=0o600)


def replace_secret(path: Path, content: str) -> None:
    """Write a file that its owner alone can read, as ``write_file`` does.

    Raises:
        StorageError: the file cannot be written; nothing half-written stays.
    """
    _replace(path, [content.encode()], mode=0o600)


def create_file(path: Path, content: bytes) -> bool:
    """Write a file unless there is one; tell whether it was written: of several, the first is.

    Raises:
        StorageError: the file cannot be written; nothing half-written stays.
    """
    return _create(path, content, mode=0o666 & ~_UMASK)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    A folder that is already at ``path`` is replaced.

    Raises:
        StorageError: the folder cannot be written; nothing half-written stays.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            _settle_folder(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def put_folder(finished: Path, path: Path) -> None:
    """Rename a finished folder beside ``path`` to it, all of it on disk; one there is replaced.

    Raises:
        StorageError: it cannot be.
    """
    with storage_errors(path):
        _settle_folder(finished, path)


@contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    Its owner alone can enter it, and its files keep their rights. An empty folder at ``path`` is
    replaced.

    Raises:
        StorageError: something else is at ``path``, or it cannot be written; nothing half-written
            stays.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; who else wants it waits.

    It stays there: a lock that is removed could be held twice. Whoever is killed lets it go.

    Raises:
        StorageError: it cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about ``path`` into a ``StorageError`` that helps."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror or error}). "
            "Make room there or choose a folder that you may write to, then run again."
        ) from error


def _replace(path: Path, pieces: Iterable[bytes | memoryview], *, mode: int) -> None:
    with storage_errors(path):
        with _beside(path, pieces, mode=mode) as temporary:
            os.replace(temporary, path)
        _sync_folder(path.parent)


def _create(path: Path, content: bytes, *, mode: int) -> bool:
    with storage_errors(path):
        with _beside(path, [content], mode=mode) as temporary:
            try:
                os.link(temporary, path)  # unlike to rename, it fails where there is one
            except FileExistsError:
                return False
        _sync_folder(path.parent)
        return True


@contextmanager
def _beside(path: Path, pieces: Iterable[bytes | memoryview], *, mode: int) -> Iterator[Path]:
    """Yield a temporary file beside ``path``, on disk, with these rights.

    It has gone after the block, unless it was renamed. No link that is put in its place meanwhile
    gets its rights: root writes in folders of others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _settle_folder(new: Path, path: Path) -> None:
    """Give a new folder and what is in it their usual rights, and put it to its place for good."""
    for inner in new.rglob("*"):
        _settle(inner)
    new.chmod(0o777 & ~_UMASK)
    _put_in_place(new, path)
    _sync_folder(path.parent)


def _put_in_place(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; a folder that is there is set aside until that has worked."""
    old = new.with_name(f"{new.name}.old")
    if path.is_dir():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _settle(path: Path) -> None:
    """Give a file in a new folder its usual rights and bring it to disk."""
    if path.is_file():
        path.chmod(0o666 & ~_UMASK)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
