"""The log itself: entries are appended, never changed, and each is on disk before work goes on.

::

    evidence/
        log.sqlite         the entries, chained by SHA-256
        log.sqlite.head    how many there are, and the hash of the last
        texts/             recipes and policies that entries name, each named by its SHA-256
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from fedlora import atomic
from fedlora.chained_file import EMPTY, Chain, ChainedFile, Head, Kind
from fedlora.errors import EvidenceError
from fedlora.gate.evidence.entries import (
    Entry,
    Exported,
    Logged,
    Receipted,
    Released,
    text_of,
    walked,
)
from fedlora.gate.evidence.statements import Receipt, SignedHead
from fedlora.signing import PublicKey, Signer

FILE = "log.sqlite"
TEXTS = "texts"

LOG = Kind(
    name="log",
    error=EvidenceError,
    if_older=(
        "What is missing is evidence of what left this site. Put the newest database back, its "
        ".head file with it. If it is lost, export what there is, set the folder aside, and enrol "
        "anew: the aggregator's operator then knows of it."
    ),
    if_broken="Nothing comes in or leaves",
)


class EvidenceLog:
    """A site's log.

    Several processes may use one folder at once, each with a log of its own.

    Guarantees:
        - What ``append`` returned from survives a kill and a power failure.
        - A log with an entry that was changed, moved, copied, dropped from its middle or written
          by another than the gate is worked with no more; likewise one that is shorter than its
          mirror or than the newest receipt.

    Args:
        folder: made if it is not there.
        site: whose it is.
        signer: the gate's key.
        clock: gives the time that entries keep.

    Raises:
        EvidenceError: the log is not whole, or an older one was put back. This holds for every
            call.
        StorageError: it cannot be read or written; likewise.
    """

    def __init__(
        self,
        folder: Path,
        *,
        site: str,
        signer: Signer,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = folder
        self.site = site
        self._signer = signer
        self._clock = clock
        self._file = ChainedFile(folder / FILE, LOG)
        self._read, self._receipted = EMPTY, 0
        self._by_round: Counter[tuple[str, int]] = Counter()
        self._by_time: list[tuple[datetime, int]] = []
        self.head()

    @property
    def gate(self) -> PublicKey:
        """Whose signature the entries have."""
        return self._signer.public

    def append(self, entry: Entry) -> Head:
        """Write an entry; it is on disk when this returns. Return how far the log has come."""
        with self._transaction() as chain:
            return self._append(chain, entry)

    def head(self) -> Head:
        """Return how far the log has come."""
        with self._transaction() as chain:
            return chain.head

    def signed_head(self) -> SignedHead:
        """Return how far the log has come, signed: what goes out with each answer."""
        return self.sign(self.head())

    def require_receipted(self, receipt: Receipt, *, aggregator: PublicKey) -> None:
        """Do nothing but log it if the log has grown from where the aggregator has seen it.

        Raises:
            EvidenceError: an older log or another was put in its place; or the receipt is not this
                site's, or not signed by the aggregator that the site has joined.
        """
        if receipt.site != self.site or not receipt.signed_by(aggregator):
            raise EvidenceError(
                f"The instruction brings no receipt of {self.site}'s log that is signed by the "
                f"aggregator's key {aggregator.fingerprint}. If the aggregator has a new key, "
                "enrol anew with its bundle."
            )
        with self._transaction() as chain:
            chain.require(receipt, by="the aggregator")
            if receipt.count > self._receipted:
                entry = Receipted(
                    count=receipt.count,
                    hash=receipt.hash,
                    signature=base64.b64encode(receipt.signature).decode(),
                    key=aggregator.text,
                )
                self._append(chain, entry)

    def entries(self, *, after: Head = EMPTY) -> list[Logged]:
        """Return the entries after a head of this log, oldest first."""
        with self._transaction() as chain:
            chain.require(after, by="the reader")
            return list(self._walked(chain, after))

    def bytes_released(self, run: str, number: int) -> int:
        """Return the bytes of all payloads that have left in a round."""
        with self._transaction():
            return self._by_round[run, number]

    def bytes_released_since(self, time: datetime) -> int:
        """Return the bytes of all payloads that have left at a time or later."""
        with self._transaction():
            return sum(size for when, size in self._by_time if when >= time)

    def keep(self, text: str) -> str:
        """Keep a recipe or policy that entries name; return its SHA-256."""
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = self.folder / TEXTS / digest
        if not path.exists():
            atomic.write_file(path, text)
        return digest

    def text(self, digest: str) -> str:
        """Return a text that was kept.

        Raises:
            EvidenceError: it is not there, or not what was kept.
        """
        path = self.folder / TEXTS / digest
        with suppress(OSError):
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == digest:
                return content.decode()
        raise EvidenceError(
            f"{path}: the recipe or policy with this SHA-256 is not there any more, or is not what "
            "was kept. Put it back from a backup: entries of the log name it."
        )

    def pin(
        self, to: str, files_of: Callable[[Sequence[Logged]], Mapping[str, bytes]]
    ) -> tuple[Mapping[str, bytes], str, Head]:
        """Log an export whose files follow from the entries before it.

        Returns:
            The files, all entries as ``Chain.lines``, and the head that the export has made.
        """
        with self._transaction() as chain:
            files = files_of(list(self._walked(chain, EMPTY)))
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            head = self._append(chain, Exported(to=to, files=digests))
            return files, "".join(chain.lines()), head

    def sign(self, head: Head) -> SignedHead:
        """Return a head with the gate's signature."""
        facts = {"count": head.count, "hash": head.hash, "site": self.site, "time": self._time()}
        return SignedHead.sign(self._signer, **facts)

    @contextmanager
    def _transaction(self) -> Iterator[Chain]:
        """Yield the chain; what is counted here has been brought up to its head."""
        with self._file.transaction() as chain:
            chain.require(self._read, by="this process")
            for logged in self._walked(chain, self._read):
                self._count(logged)
            yield chain
            written = list(self._walked(chain, self._read))
        for logged in written:  # now that it is on disk
            self._count(logged)

    def _walked(self, chain: Chain, start: Head) -> Iterator[Logged]:
        rows, where = chain.after(start), str(self._file.path)
        return walked(rows, gate=self.gate, start=start, where=where)

    def _count(self, logged: Logged) -> None:
        match logged.entry:
            case Released(run=run, round=number, size=size):
                self._by_round[run, number] += size
                self._by_time.append((datetime.fromisoformat(logged.time), size))
            case Receipted(count=count):
                self._receipted = count
        self._read = logged.head

    def _append(self, chain: Chain, entry: Entry) -> Head:
        text = text_of(entry, time=self._time(), before=chain.head, signer=self._signer)
        return chain.append(text)

    def _time(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
