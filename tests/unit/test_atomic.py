"""Files and folders appear whole or not at all."""

import errno
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedlora import atomic
from fedlora.errors import StorageError

FULL = OSError(errno.ENOSPC, "No space left on device")


def fail(*_: object, **__: object) -> None:
    raise FULL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"\x00\xff", "grün\n", b"", ""])
def test_a_file_holds_what_was_written(tmp_path, content):
    """Bytes as they are, text as UTF-8; folders above are made."""
    path = tmp_path / "a" / "b" / "file"
    atomic.write_file(path, content)
    expected = content if isinstance(content, bytes) else content.encode()
    assert path.read_bytes() == expected
    assert names(path.parent) == ["file"]


def test_a_file_is_replaced(tmp_path):
    """The new content stands where the old did."""
    path = tmp_path / "file"
    atomic.write_file(path, "old, and longer than the new")
    atomic.write_file(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, step):
    """Whichever step fails, the old content stays, nothing else does, and the error helps."""
    path = tmp_path / "file"
    atomic.write_file(path, "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match=r"file: cannot be written \(No space left.*Make room"):
        atomic.write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_secret_is_its_owners_alone_from_the_start(tmp_path, monkeypatch):
    """Nobody else may read it at any moment, under whichever name."""
    modes = []
    link = os.link

    def watched(source: Path, target: Path) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir())
        link(source, target)

    monkeypatch.setattr(os, "link", watched)
    path = tmp_path / "key"
    atomic.write_secret(path, b"key")
    assert modes == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"key"
    assert names(tmp_path) == ["key"]


def test_of_several_secrets_the_first_stays(tmp_path):
    """All who write at once read the same one after it."""
    path, start = tmp_path / "key", threading.Barrier(8)

    def write(number: int) -> bytes:
        start.wait()
        atomic.write_secret(path, bytes([number]) * 32)
        return path.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(write, range(8)))) == 1
    assert names(tmp_path) == ["key"]


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_a_secret_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch, step):
    """Whichever step fails; the error helps."""
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match=r"key: cannot be written \(No space left.*Make room"):
        atomic.write_secret(tmp_path / "key", b"key")
    assert names(tmp_path) == []


def test_a_secret_that_is_replaced_is_its_owners_alone(tmp_path):
    """Also where everyone could read what was there."""
    path = tmp_path / "file"
    atomic.write_file(path, "old")
    atomic.replace_secret(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    assert names(tmp_path) == ["file"]


def test_one_at_a_time_holds_a_lock(tmp_path):
    """Nobody else is in the block, threads of one process neither."""
    inside, most = [], []

    def hold(number: int) -> None:
        with atomic.alone(tmp_path / "new" / ".lock"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.005)
            inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(8)))
    assert most == [1] * 8


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path, small_disk):
    """The same with a write that the operating system itself cuts short."""
    path = tmp_path / "file"
    atomic.write_file(path, "old")
    with small_disk(1000), pytest.raises(StorageError, match="file: cannot be written"):
        atomic.write_file(path, bytes(5000))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_ctrl_c_in_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    """An interrupt passes through as it is."""
    path = tmp_path / "file"
    atomic.write_file(path, "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_ctrl_c_after_the_last_step_passes_through(tmp_path, monkeypatch):
    """The temporary file has its final name by then, and is not missed."""
    replace = os.replace

    def replace_and_interrupt(source: str, target: Path) -> None:
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_file(tmp_path / "file", "new")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [atomic.write_file, lambda path, _: enter(path)])
def test_a_file_where_a_folder_should_be_is_a_storage_error(tmp_path, write):
    """The message names the path."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="taken/inner: cannot be written"):
        write(tmp_path / "taken" / "inner", "x")


def test_rights_are_the_usual_ones(tmp_path):
    """A temporary file's narrow rights do not stay: others may read what the umask lets them."""
    (tmp_path / "plain").write_text("x")
    (tmp_path / "folder").mkdir()
    atomic.write_file(tmp_path / "file", "x")
    with atomic.new_folder(tmp_path / "new") as folder:
        (folder / "inner").write_text("x")
    mode = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names(tmp_path)}
    assert mode["file"] == mode["plain"] == stat.S_IMODE((tmp_path / "new/inner").stat().st_mode)
    assert mode["new"] == mode["folder"]


def test_a_folder_appears_when_its_block_ends(tmp_path):
    """Before that there is nothing of its name."""
    path = tmp_path / "above" / "folder"
    with atomic.new_folder(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("x")
        assert not path.exists()
    assert (path / "inner" / "file").read_text() == "x"
    assert names(path.parent) == ["folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    """No file of the old folder stays."""
    enter(tmp_path / "folder", "old")
    enter(tmp_path / "folder", "new")
    assert names(tmp_path / "folder") == ["new"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_folder_leaves_the_old_one(tmp_path, monkeypatch, step):
    """The old folder stays whole, and nothing else."""
    enter(tmp_path / "folder", "old")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StorageError, match="folder: cannot be written"):
        enter(tmp_path / "folder", "new")
    monkeypatch.undo()
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    """The old folder, set aside by then, comes back."""
    enter(tmp_path / "folder", "old")
    replace, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise FULL
        replace(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(StorageError):
        enter(tmp_path / "folder", "new")
    assert names(tmp_path / "folder") == ["old"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_block_leaves_nothing(tmp_path, error):
    """The error passes through."""

    def spoil(temporary: Path) -> None:
        (temporary / "file").write_text("x")
        raise error

    with pytest.raises(error), atomic.new_folder(tmp_path / "folder") as temporary:
        spoil(temporary)
    assert names(tmp_path) == []


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    """What the user has there stays."""
    (tmp_path / "folder").write_text("a file of the user")
    with pytest.raises(StorageError, match="folder: cannot be written"):
        enter(tmp_path / "folder")
    assert (tmp_path / "folder").read_text() == "a file of the user"
    assert names(tmp_path) == ["folder"]


def enter(path: Path, file: str = "file") -> None:
    with atomic.new_folder(path) as temporary:
        (temporary / file).write_text("x")
