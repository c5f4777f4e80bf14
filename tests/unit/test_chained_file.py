"""A chained file on disk: its chain, its mirror, old databases, full disks."""

import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fedlora.chained_file import EMPTY, Chain, ChainedFile, Head
from fedlora.errors import BudgetError, StorageError
from fedlora.privacy.ledger.ledger import LEDGER

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def mirror(path: Path) -> Path:
    return path.with_name("ledger.sqlite.head")


def append(path: Path, *texts: str) -> Head:
    """Append each text in a transaction of its own."""
    file = ChainedFile(path, LEDGER)
    for text in texts:
        with file.transaction() as chain:
            head = chain.append(text)
    return head


def read(path: Path) -> list[bytes]:
    with ChainedFile(path, LEDGER).transaction() as chain:
        return [text for _, text in chain.after(EMPTY)]


def append_and_fail(chain: Chain) -> None:
    chain.append("two")
    raise KeyError


def tamper(path: Path, statement: str, *values: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


def test_rows_come_back_in_their_order(path):
    """Each with the head that it makes; the mirror is at the last."""
    last = append(path, "one", "two", "drei ü")
    with ChainedFile(path, LEDGER).transaction() as chain:
        rows = list(chain.after(EMPTY))
        assert [(head.count, text.decode()) for head, text in rows] == [
            (1, "one"),
            (2, "two"),
            (3, "drei ü"),
        ]
        assert chain.head == rows[-1][0] == last
        assert list(chain.after(rows[1][0])) == rows[2:]


def test_only_its_owner_can_read_it(path, mirror):
    """Also if it was made before with wider rights."""
    path.touch(mode=0o666)
    path.chmod(0o666)
    append(path, "one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("statement", "row", "reason"),
    [
        ("UPDATE rows SET content = 'twO' WHERE number = 2", 2, "not what was written"),
        ("UPDATE rows SET content = CAST('twO' AS BLOB) WHERE number = 2", 2, "not what was"),
        ("UPDATE rows SET content = x'ff' WHERE number = 2", 2, "not what was written"),
        ("UPDATE rows SET hash = 'f00d' WHERE number = 2", 2, "not what was written"),
        ("UPDATE rows SET hash = x'ff' WHERE number = 1", 1, "not what was written"),
        ("DELETE FROM rows WHERE number = 2", 2, "missing"),
        ("DELETE FROM rows WHERE number = 1", 1, "missing"),
        ("UPDATE rows SET number = -1 WHERE number = 2", 2, "missing"),
    ],
)
def test_the_first_broken_row_is_named(path, statement, row, reason):
    """Whatever was changed in a row or of its place."""
    append(path, "one", "two", "three", "four")
    tamper(path, statement)
    with pytest.raises(BudgetError, match=rf"ledger\.sqlite: .* broken at row {row}: .*{reason}"):
        read(path)


def test_a_row_whose_hash_was_made_to_fit_breaks_the_next(path):
    """Who changes a row must change all after it, and the mirror."""
    one = append(path, "one")
    append(path, "two", "three")
    forged = one.extended(b"less")
    tamper(path, "UPDATE rows SET content = 'less', hash = ? WHERE number = 2", forged.hash)
    with pytest.raises(BudgetError, match="broken at row 3"):
        read(path)


@pytest.mark.parametrize(
    ("went_on", "refusal"),
    [
        ([], "an older database was restored: it has 2 rows, and ledger.sqlite.head has seen 4"),
        (["5"], "an older database was restored: it has 3 rows"),
        (["5", "6"], "another database than ledger.sqlite.head has seen: row 4"),
        (["5", "6", "7"], "another database than ledger.sqlite.head has seen: row 4"),
    ],
    ids=len,
)
def test_a_restored_database_is_refused(tmp_path, path, went_on, refusal):
    """Yesterday's file is older than the mirror, and another if a copy of it went on elsewhere."""
    append(path, "one", "two")
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    shutil.copy(path, copy)
    shutil.copy(f"{path}.head", f"{copy}.head")
    append(path, "three", "four")
    if went_on:
        append(copy, *went_on)
    shutil.copy(copy, path)
    with pytest.raises(BudgetError, match=refusal):
        read(path)


def test_a_database_restored_beside_one_that_is_open_is_refused(path):
    """Each transaction looks at the file that is there then."""
    file = ChainedFile(path, LEDGER)
    append(path, "one")
    yesterday = path.read_bytes()
    append(path, "two")
    path.unlink()
    path.write_bytes(yesterday)
    with pytest.raises(BudgetError, match="older"), file.transaction():
        pass


@pytest.mark.parametrize("content", [None, "", "2", "two f00d", "2 f00d more", "2 \u00fc"])
def test_a_mirror_that_says_nothing_is_refused(path, mirror, content):
    """Else who restores an old database would only have to delete it."""
    append(path, "one", "two")
    if content is None:
        mirror.unlink()
    else:
        mirror.write_text(content, encoding="utf-8")
    with pytest.raises(
        BudgetError, match=r"ledger.sqlite.head: the ledger's mirror .* Put it back"
    ):
        read(path)


def test_a_mirror_that_is_a_folder_is_refused(path, mirror):
    """What cannot be read is no reason to begin anew."""
    append(path, "one")
    mirror.unlink()
    mirror.mkdir()
    with pytest.raises(BudgetError, match=r"the ledger's mirror cannot be read"):
        read(path)


def test_a_database_that_was_deleted_is_missed(path):
    """The mirror knows that there was one."""
    append(path, "one")
    path.unlink()
    with pytest.raises(BudgetError, match=r"it has 0 rows, and ledger.sqlite.head has seen 1"):
        read(path)


def test_a_mirror_written_by_hand_as_the_error_says_is_taken(path, mirror):
    """The operator who lost only the mirror can go on."""
    last = append(path, "one", "two")
    mirror.unlink()
    mirror.write_text(f"{last.count} {last.hash}")
    assert read(path) == [b"one", b"two"]


DIES_AT_THE_MIRROR = """
import os, signal, sys
from pathlib import Path
from fedlora.chained_file import ChainedFile
from fedlora.privacy.ledger.ledger import LEDGER

file = ChainedFile(Path(sys.argv[1]), LEDGER)
with file.transaction() as chain:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    chain.append("two")
"""


def test_a_kill_between_commit_and_mirror_keeps_the_row(path, mirror):
    """The mirror is behind, which is no restored database, and is brought up."""
    before = append(path, "one")
    killed = subprocess.run([sys.executable, "-c", DIES_AT_THE_MIRROR, path], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert mirror.read_text() == f"1 {before.hash}\n"
    assert read(path) == [b"one", b"two"]
    after = before.extended(b"two")
    assert mirror.read_text() == f"2 {after.hash}\n"


def test_a_mirror_that_cannot_be_written_is_an_error_after_the_commit(path, mirror, monkeypatch):
    """The row stays, so nothing that was drawn on it can be missing; the next call catches up."""
    before = append(path, "one")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"ledger.sqlite.head: cannot be written \(No space"):
        append(path, "two")
    monkeypatch.undo()
    assert mirror.read_text() == f"1 {before.hash}\n"
    append(path, "three")
    assert read(path) == [b"one", b"two", b"three"]


def test_the_mirror_is_written_under_the_lock(path, monkeypatch):
    """Of two processes, the slower could else set back what the faster wrote after its commit."""
    append(path, "one")
    replace, refused = os.replace, []

    def look_and_replace(source: str, target: Path) -> None:
        with closing(sqlite3.connect(path, timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                refused.append(str(error))
        replace(source, target)

    monkeypatch.setattr(os, "replace", look_and_replace)
    append(path, "two")
    assert refused == ["database is locked"]


def test_reading_changes_no_file(path, mirror):
    """The mirror is written when it is behind, not each time."""
    append(path, "one")
    before = [(file.stat().st_ino, file.read_bytes()) for file in (path, mirror)]
    read(path)
    assert [(file.stat().st_ino, file.read_bytes()) for file in (path, mirror)] == before


def test_an_error_in_a_transaction_leaves_the_rows_of_before(path, mirror):
    """The error passes through, and the next transaction is not kept waiting."""
    append(path, "one")
    mirrored = mirror.read_text()
    with pytest.raises(KeyError), ChainedFile(path, LEDGER).transaction() as chain:
        append_and_fail(chain)
    assert mirror.read_text() == mirrored
    append(path, "three")
    assert read(path) == [b"one", b"three"]


def test_a_full_disk_is_a_storage_error(path, mirror, small_disk):
    """The operating system cuts the write short; the rows of before are whole."""
    append(path, "one")
    with small_disk(path.stat().st_size), pytest.raises(StorageError, match="Make room there"):
        append(path, "x" * 10_000)
    assert read(path) == [b"one"]


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    """The message names the path."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match=r"taken/ledger.sqlite: cannot be written"):
        ChainedFile(tmp_path / "taken" / "ledger.sqlite", LEDGER)


def test_a_database_that_is_gone_is_a_storage_error(path):
    """Nothing makes a new one in its place behind an open ledger's back."""
    file = ChainedFile(path, LEDGER)
    append(path, "one")
    path.unlink()
    with pytest.raises(StorageError, match="unable to open database file"), file.transaction():
        pass
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"plain text, longer than a header" * 100, b"SQLite format 3\0"]
)
def test_a_file_of_another_kind_is_no_ledger(path, content):
    """It is refused and left as it is."""
    path.write_bytes(content)
    with pytest.raises(BudgetError, match="this is not a ledger, or it is damaged"):
        read(path)
    assert path.read_bytes() == content


def test_two_transactions_never_overlap(path, monkeypatch):
    """The second waits, and says so when it has waited for too long."""
    monkeypatch.setattr("fedlora.chained_file._WAIT", 0.1)
    file = ChainedFile(path, LEDGER)
    with file.transaction() as chain:
        chain.append("one")
        with pytest.raises(StorageError, match=r"database is locked.*for over 0.1 s"):
            append(path, "two")
    assert read(path) == [b"one"]


def test_a_receipt_is_compared_with_the_chain(path):
    """Heads that the chain has passed are fine; longer or other ones are not."""
    heads = [append(path, text) for text in ("one", "two", "three")]
    with ChainedFile(path, LEDGER).transaction() as chain:
        for seen in (EMPTY, *heads):
            chain.require(seen, by="the aggregator")
        with pytest.raises(BudgetError, match="it has 3 rows, and the aggregator has seen 4"):
            chain.require(heads[-1].extended(b"four"), by="the aggregator")
        for seen in (heads[0].extended(b"2"), Head(count=0, hash="f00d"), Head(count=-1, hash="")):
            with pytest.raises(BudgetError, match="another database than the aggregator has seen"):
                chain.require(seen, by="the aggregator")
