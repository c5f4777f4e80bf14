"""A file of texts that can only be appended to: each row is chained to the one before by a hash."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedlora import atomic
from fedlora.errors import FedloraError, StorageError

_WAIT = 30
"""Seconds to wait for another process that is writing."""
_SCHEMA = """CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY, content TEXT NOT NULL, hash TEXT NOT NULL)"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a chain is to its user: how errors call it, and what they say to do."""

    name: str
    """What the file is, such as ``ledger``."""
    error: type[FedloraError]
    """Raised when the file is not whole, or not the newest."""
    if_older: str
    """What is lost with the rows that an older file lacks, and what to do."""
    if_broken: str
    """What cannot be done while a row is broken."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """How far a chain has come."""

    count: int
    """Rows of the chain."""
    hash: str
    """Of the last row, in hexadecimal."""

    def extended(self, text: bytes) -> "Head":
        """Return the head after one more row: SHA-256 over the hash before it and its text."""
        digest = hashlib.sha256(self.hash.encode() + text).hexdigest()
        return Head(count=self.count + 1, hash=digest)

    def keep(self, path: Path) -> None:
        """Write the head to a small file.

        Raises:
            StorageError: it cannot be written.
        """
        atomic.write_file(path, f"{self.count} {self.hash}\n")

    @classmethod
    def kept(cls, path: Path) -> Self:
        """Read the head that ``keep`` wrote.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
            ValueError: it holds something else.
        """
        count, digest = path.read_text(encoding="ascii").split()
        return cls(count=int(count), hash=digest)


EMPTY = Head(count=0, hash="0" * 64)
"""Of a chain without rows."""


class Chain:
    """The rows of a file inside one transaction. Errors are of the file's ``Kind``."""

    def __init__(self, database: sqlite3.Connection, path: Path, kind: Kind) -> None:
        self._database = database
        self._path = path
        self._kind = kind

    @property
    def head(self) -> Head:
        """The last row's number and hash, as they are written there."""
        row = self._database.execute(
            "SELECT number, CAST(hash AS BLOB) FROM rows ORDER BY number DESC LIMIT 1"
        ).fetchone()
        return Head(count=row[0], hash=_hexadecimal(row[1])) if row else EMPTY

    def after(self, head: Head) -> Iterator[tuple[Head, bytes]]:
        """Yield the rows after ``head``, each with the head that it makes.

        Raises:
            FedloraError: a row is missing or is not what was written; named when it is come to.
        """
        # CAST: what is hashed are the bytes on disk, whatever type they are said to have
        rows = self._database.execute(
            "SELECT number, CAST(content AS BLOB), CAST(hash AS BLOB) FROM rows WHERE number > ? "
            "ORDER BY number",
            (head.count,),
        )
        for number, text, written in rows:
            following = head.extended(text)
            if number != following.count:
                raise self.broken(following.count, "it is missing")
            if written != following.hash.encode():
                raise self.broken(number, "it, or the row before, is not what was written")
            head = following
            yield head, text

    def append(self, text: str) -> Head:
        """Append a row."""
        head = self.head.extended(text.encode())
        self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (head.count, text, head.hash))
        return head

    def require(self, seen: Head, *, by: str) -> None:
        """Do nothing if the chain has grown from a head that was seen before, or is at it.

        Raises:
            FedloraError: the chain is shorter, or another.
        """
        count = self.head.count
        if count < seen.count:
            raise self._kind.error(
                f"{self._path}: an older database was restored: it has {count} rows, and {by} has "
                f"seen {seen.count}. {self._kind.if_older}"
            )
        row = self._database.execute(
            "SELECT CAST(hash AS BLOB) FROM rows WHERE number = ?", (seen.count,)
        ).fetchone()
        known = _hexadecimal(row[0]) if row else EMPTY.hash if seen.count == 0 else None
        if seen.hash != known:
            raise self._kind.error(
                f"{self._path}: this is another database than {by} has seen: row {seen.count} has "
                "another hash. One was restored or copied and went on from there. Put back the one "
                "that this site wrote last."
            )

    def lines(self) -> Iterator[str]:
        """Yield each row as a JSON line with ``row``, ``hash`` and ``content``, which is JSON too.

        ``content`` stands there byte for byte as it was hashed: SHA-256 over the 64 characters of
        the line before's ``hash`` (zeros before the first) and ``content``.
        """
        for head, text in self.after(EMPTY):
            yield f'{{"row":{head.count},"hash":"{head.hash}","content":{text.decode()}}}\n'

    def broken(self, number: int, reason: str) -> FedloraError:
        """Return the error that names a row."""
        return self._kind.error(
            f"{self._path}: the {self._kind.name} is broken at row {number}: {reason}. "
            f"{self._kind.if_broken} until a backup that has all rows is put in its place."
        )


def _hexadecimal(written: bytes) -> str:
    return written.decode("ascii", "replace")


class ChainedFile:
    """A chain in an SQLite database; a small file beside it mirrors how far it has come.

    Guarantees:
        - When ``transaction`` has ended without an error, what was appended survives a kill and a
          power failure, and the mirror has seen it.
        - A transaction that an error or a kill ends leaves the rows of before it, or, once they
          were committed, of after it.
        - A database that is older than its mirror, or another, is not worked with.
        - The database can be read by its owner only.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path = path
        self._kind = kind
        self.mirror = path.with_name(f"{path.name}.head")
        with atomic.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Neither opens an existing file: to close it would drop SQLite's locks on it.
            path.touch(mode=0o600)
            path.chmod(0o600)

    @contextmanager
    def transaction(self) -> Iterator[Chain]:
        """Yield the chain, which no other process or thread changes meanwhile.

        Raises:
            FedloraError: of the file's kind: it is no such file, or is older than its mirror.
            StorageError: it cannot be written, or another process has held it for too long.
        """
        with self._errors(), closing(self._connect()) as database:
            chain = Chain(database, self.path, self._kind)
            database.execute("BEGIN IMMEDIATE")
            database.execute(_SCHEMA)
            self._check(chain)
            yield chain
            database.execute("COMMIT")
            # Under the lock again, so that of two processes the slower does not set it back.
            database.execute("BEGIN IMMEDIATE")
            self._bring_up(chain)

    def _connect(self) -> sqlite3.Connection:
        # Anew for each transaction: a file that was put in the old one's place is noticed.
        database = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=_WAIT,
            isolation_level=None,
        )
        # FULL, and the folder too: else a power failure could bring the old journal back, and with
        # it the state before the commit.
        database.execute("PRAGMA synchronous = EXTRA")
        return database

    def _check(self, chain: Chain) -> None:
        seen = self._seen(chain.head)
        if seen is not None:
            chain.require(seen, by=self.mirror.name)
        elif chain.head == EMPTY:
            self._bring_up(chain)  # before the first row, so that later it is never missing
        else:
            raise self._no_mirror("is missing", chain.head)

    def _bring_up(self, chain: Chain) -> None:
        """Write the mirror unless it is at the head; after a kill it may be behind."""
        head = chain.head
        if self._seen(head) != head:
            head.keep(self.mirror)

    def _seen(self, head: Head) -> Head | None:
        try:
            return Head.kept(self.mirror)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._no_mirror(f"cannot be read ({error})", head) from None

    def _no_mirror(self, reason: str, head: Head) -> FedloraError:
        return self._kind.error(
            f"{self.mirror}: the {self._kind.name}'s mirror {reason}; it holds how many rows "
            f"{self.path.name} has and the hash of the last. Put it back. If it is lost, and you "
            "know that the database is the one that this site wrote last, write this line into it: "
            f"{head.count} {head.hash}"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours; an operational one is the disk's or another process's."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"{self.path}: the {self._kind.name} cannot be read or written ({error}). Make "
                "room there, see that you may write to the folder and that no process holds the "
                f"file for over {_WAIT} s, then run again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._kind.error(
                f"{self.path}: this is not a {self._kind.name}, or it is damaged ({error}). Put "
                "the newest backup in its place."
            ) from error
