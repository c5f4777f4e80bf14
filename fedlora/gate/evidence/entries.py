"""What the log's entries say. The list is closed, and no entry has a place for data or values."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedlora.chained_file import Head
from fedlora.errors import EvidenceError
from fedlora.signing import PublicKey, Signer, canonical

Purpose = Literal[
    "query", "train", "train.share", "train.mask", "train.sign", "train.reveal", "evaluate"
]


@dataclass(frozen=True, kw_only=True)
class Configured:
    """The gate started, or its operator's word changed."""

    site: str
    version: str
    """Of fedlora."""
    policy: str
    """SHA-256 of the policy's text, which is kept with the log."""
    isolation: str
    """What separates the trainer from the rest, such as ``required`` or ``none``."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What all entries about one instruction have: which it is."""

    run: str
    """As the instruction says; likewise the round."""
    round: int
    purpose: Purpose
    message: str
    """Flower's id of the instruction."""


@dataclass(frozen=True, kw_only=True)
class Moved(Exchange):
    """Something came or left."""

    size: int
    """Bytes of the payload, the encoded adapter or update; 0 without one."""
    payload: str | None
    """SHA-256 of exactly these bytes; none without a payload."""
    content: str
    """SHA-256 over all records of the message but evidence, as ``records.digests_of``."""
    recipe: str
    """SHA-256 of the recipe's text, which is kept with the log."""
    spec: str | None
    """Digest of the adapter that the recipe trains, where it is known."""


@dataclass(frozen=True, kw_only=True)
class Received(Moved):
    """An instruction came in."""


@dataclass(frozen=True, kw_only=True)
class Decided(Exchange):
    """The policy, and what else judges an instruction, allowed it or did not."""

    allowed: bool
    reasons: tuple[str, ...]
    """Why not; or what it was allowed by, such as an operator's yes."""
    policy: str
    """SHA-256 of the policy's text."""


@dataclass(frozen=True, kw_only=True)
class Released(Moved):
    """An answer goes out: written before it is sent."""

    metrics: tuple[str, ...]
    """Names of the numbers beside the payload; all are on the closed list of what may leave."""
    ledger_count: int | None
    """Rows of the site's privacy ledger after this answer was charged; none where it keeps none."""
    ledger_hash: str | None
    """Of the last of these rows."""


@dataclass(frozen=True, kw_only=True)
class Refused(Exchange):
    """An error goes out in place of an answer: written before it is sent."""

    said: str
    """The text that goes out, one of a closed list."""
    cause: str
    """Name of the error, such as ``InspectionError``; its text may tell of data and is not here."""


@dataclass(frozen=True, kw_only=True)
class Receipted:
    """The aggregator has seen the log come as far as an entry, and signed that."""

    count: int
    hash: str
    signature: str
    """Base64; over the receipt, see ``statements.py``."""
    key: str
    """The aggregator's public key, in base64."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A pack is written that pins all entries up to this one: the last that is in it."""

    to: str
    """The pack's name."""
    files: Mapping[str, str]
    """SHA-256 of each file of the pack but the entries and the signed head."""


Entry = Configured | Received | Decided | Released | Refused | Receipted | Exported

KINDS: Mapping[str, type[Entry]] = {
    "configured": Configured,
    "received": Received,
    "decided": Decided,
    "released": Released,
    "refused": Refused,
    "receipted": Receipted,
    "exported": Exported,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Logged:
    """An entry in its place."""

    head: Head
    """How far the log had come with this entry: its number and hash."""
    time: str
    """UTC, ISO 8601, by the site's clock."""
    entry: Entry

    @property
    def kind(self) -> str:
        """The entry's kind."""
        return _NAMES[type(self.entry)]


def text_of(entry: Entry, *, time: str, before: Head, signer: Signer) -> str:
    """Return what is kept and hashed of an entry: canonical JSON with the gate's signature.

    Signed are the entry and the hash before it: nobody without the key can write, move or copy one.
    """
    facts = {"kind": _NAMES[type(entry)], "time": time, **asdict(entry)}
    signature = signer.sign(_statement(facts, before=before))
    return canonical({"entry": facts, "signature": _shown(signature)}).decode()


def walked(
    rows: Iterable[tuple[Head, bytes]], *, gate: PublicKey, start: Head, where: str
) -> Iterator[Logged]:
    """Yield the entries of a chain's rows, each when its signature holds.

    Args:
        rows: in their order, each with the head that it makes.
        gate: who has signed them.
        start: the head before the first.
        where: the log's path, for errors.

    Raises:
        EvidenceError: names the first entry that the gate has not written there.
    """
    before = start
    for head, text in rows:
        place = f"{where}: entry {head.count}"
        try:
            row = json.loads(text)
            facts, signature = row["entry"], base64.b64decode(row["signature"], validate=True)
            intact = canonical(row) == text
            signed = intact and gate.signed(_statement(facts, before=before), signature)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EvidenceError(f"{place} is no entry of an evidence log.") from None
        if not signed:
            raise EvidenceError(
                f"{place} is not signed by the gate's key {gate.fingerprint}: another has written "
                "it, or another key is the gate's."
            )
        yield _logged(facts, head, place)
        before = head


def _logged(facts: dict[str, Any], head: Head, place: str) -> Logged:
    try:
        kind, time = KINDS[facts.pop("kind")], facts.pop("time")
        lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
        return Logged(head=head, time=time, entry=kind(**(facts | lists)))
    except (KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(
            f"{place} says what this version of fedlora does not know ({error!r}). Use the version "
            "that wrote it, or a newer one."
        ) from None


def _statement(facts: Mapping[str, Any], *, before: Head) -> bytes:
    return canonical({"after": before.hash, "entry": facts, "statement": "entry"})


def _shown(signature: bytes) -> str:
    return base64.b64encode(signature).decode()
