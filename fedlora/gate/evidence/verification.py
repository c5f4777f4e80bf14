"""Whether a log or a pack is whole, and what that proves."""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlora.chained_file import EMPTY, ChainedFile, Head
from fedlora.errors import EvidenceError
from fedlora.gate.evidence.entries import Exported, Logged, Receipted, walked
from fedlora.gate.evidence.log import FILE, LOG, TEXTS
from fedlora.gate.evidence.pack import ENTRIES, GATE_KEY, HEAD, Pack, named_texts
from fedlora.gate.evidence.statements import Receipt, SignedHead
from fedlora.signing import PublicKey

_LINE = re.compile(rb'\{"row":([1-9][0-9]{0,17}),"hash":"([0-9a-f]{64})","content":(\{.*\})\}')


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a walk through all entries has shown; there are findings only of what is whole."""

    site: str
    gate: PublicKey
    entries: Sequence[Logged]
    receipted: int
    """Entries that the aggregator's newest receipt covers."""
    others: int
    """Receipts under another key than the aggregator's that was given."""

    @property
    def head(self) -> Head:
        """How far the log has come."""
        return self.entries[-1].head if self.entries else EMPTY

    @property
    def kinds(self) -> Counter[str]:
        """How many entries there are of each kind."""
        return Counter(logged.kind for logged in self.entries)

    def require_since(self, older: Head, *, by: str) -> None:
        """Do nothing if the log has grown from a head that was seen before.

        Raises:
            EvidenceError: entries are missing that were there, or others were.
        """
        if older.count > self.head.count:
            raise EvidenceError(
                f"The log has {self.head.count} entries, but {by} has {older.count}: an older log "
                "was put in its place, or its end was cut off."
            )
        if older.count and self.entries[older.count - 1].head.hash != older.hash:
            raise EvidenceError(
                f"Entry {older.count} is another than in {by}: the log was rewritten up to there "
                "at least."
            )


def verify_log(folder: Path, *, site: str, gate: PublicKey, aggregator: PublicKey) -> Findings:
    """Walk a site's log: chain, mirror, signatures, receipts.

    Raises:
        EvidenceError: there is no log, or the first entry that is broken is named.
        StorageError: it cannot be read.
    """
    path = folder / FILE
    if not path.exists():
        raise EvidenceError(f"{path}: there is no evidence log. The gate makes it at its start.")
    with ChainedFile(path, LOG).transaction() as chain:
        rows = walked(chain.after(EMPTY), gate=gate, start=EMPTY, where=str(path))
        return _receipted(rows, site=site, gate=gate, aggregator=aggregator, where=str(path))


def verify_pack(pack: Pack, *, gate: PublicKey, aggregator: PublicKey) -> Findings:
    """Walk a pack: its entries, signatures and receipts, the signed head, and each other file.

    Raises:
        EvidenceError: something was changed, moved, added or left out; it is named.
    """
    if pack.key(GATE_KEY) != gate:
        raise EvidenceError(
            f"{pack.name}: it holds the key of another gate, {pack.key(GATE_KEY).fingerprint}; "
            f"{gate.fingerprint} was expected."
        )
    head = pack.head()
    if not head.signed_by(gate):
        raise EvidenceError(f"{pack.name}: {HEAD} is not signed by the gate's key.")
    rows = _rows(pack.files[ENTRIES], where=pack.name)
    entries = walked(rows, gate=gate, start=EMPTY, where=pack.name)
    found = _receipted(entries, site=head.site, gate=gate, aggregator=aggregator, where=pack.name)
    _require_end(found, head, where=pack.name)
    _require_files(pack, found.entries)
    return found


def proven(found: Findings) -> Iterator[str]:
    """Yield what findings prove, a sentence each."""
    first, last = (found.entries[0], found.entries[-1]) if found.entries else (None, None)
    span = f", from {first.time} to {last.time}" if first and last else ""
    yield (
        f"{found.head.count} entries of {found.site}{span}: none is missing, changed, moved or "
        f"written by another than the gate with the key {found.gate.fingerprint}."
    )
    if found.receipted:
        yield (
            f"The aggregator has signed that it saw entries 1 to {found.receipted}: they have not "
            "been rewritten since."
        )


def unproven(found: Findings) -> Iterator[str]:
    """Yield what findings leave open, a sentence each."""
    if found.receipted < found.head.count:
        yield (
            f"No receipt covers the entries after {found.receipted}: who holds the gate's key and "
            "the disk can rewrite what no receipt and no pack pins."
        )
    if found.others:
        yield f"{found.others} receipts are under another key than the aggregator's: not counted."
    yield (
        "That noise was added, and what float bits, timing, refusals and taking part tell: no log "
        "can show that (docs/evidence.md)."
    )


def _receipted(
    entries: Iterable[Logged],
    *,
    site: str,
    gate: PublicKey,
    aggregator: PublicKey,
    where: str,
) -> Findings:
    """Return what entries prove, when each receipt among them is of this very log."""
    seen: list[Logged] = []
    covered, others = 0, 0
    for logged in entries:
        if isinstance(logged.entry, Receipted):
            key = _require_receipt(logged.entry, seen, site, place=_place(logged, where))
            if key == aggregator:
                covered = max(covered, logged.entry.count)
            else:
                others += 1
        seen.append(logged)
    return Findings(site=site, gate=gate, entries=seen, receipted=covered, others=others)


def _require_receipt(
    entry: Receipted, before: Sequence[Logged], site: str, *, place: str
) -> PublicKey:
    """Return whose receipt it is."""
    if not 0 < entry.count <= len(before) or before[entry.count - 1].head.hash != entry.hash:
        raise EvidenceError(f"{place} is a receipt of another log.")
    key, signature = PublicKey.of(entry.key), base64.b64decode(entry.signature)
    receipt = Receipt(count=entry.count, hash=entry.hash, site=site, signature=signature)
    if not receipt.signed_by(key):
        raise EvidenceError(f"{place} is a receipt that {key.fingerprint} did not sign.")
    return key


def _rows(lines: bytes, *, where: str) -> Iterator[tuple[Head, bytes]]:
    """Yield the rows of ``Chain.lines``."""
    head = EMPTY
    for line in lines.removesuffix(b"\n").split(b"\n"):
        place = f"{where}: entry {head.count + 1}"
        match = _LINE.fullmatch(line)
        if not match:
            raise EvidenceError(f"{place} is not a line of an evidence log.")
        number, digest, text = match.groups()
        following = head.extended(text)
        if int(number) != following.count:
            raise EvidenceError(f"{place} is missing or not in its place.")
        if digest != following.hash.encode():
            raise EvidenceError(f"{place}, or the one before it, is not what was written.")
        head = following
        yield head, text
    if not lines.endswith(b"\n"):
        raise EvidenceError(f"{where}: entry {head.count} is cut off.")


def _require_end(found: Findings, head: SignedHead, *, where: str) -> None:
    if (found.head.count, found.head.hash) != (head.count, head.hash):
        raise EvidenceError(
            f"{where}: {HEAD} is of entry {head.count}, but the last that is there is "
            f"{found.head.count}."
        )


def _require_files(pack: Pack, entries: Sequence[Logged]) -> None:
    """Do nothing if the pack holds exactly the files that its last entry names."""
    last = entries[-1].entry
    if not isinstance(last, Exported):
        raise EvidenceError(f"{pack.name}: its last entry is not that of its export.")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in pack.files.items()}
    for name in (ENTRIES, HEAD):
        del digests[name]
    for name in sorted(digests.keys() | last.files.keys()):
        if name not in last.files:
            raise EvidenceError(f"{pack.name}: {name} was not in it when it was exported.")
        if name not in digests:
            raise EvidenceError(f"{pack.name}: {name} is missing.")
        if digests[name] != last.files[name]:
            raise EvidenceError(f"{pack.name}: {name} is not what was exported.")
    for digest in named_texts(entries):
        if digests.get(f"{TEXTS}/{digest}") != digest:
            raise EvidenceError(f"{pack.name}: the text {digest}, which entries name, is missing.")


def _place(logged: Logged, where: str) -> str:
    return f"{where}: entry {logged.head.count}"
