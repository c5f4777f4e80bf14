"""Evidence to be read: a line an entry, for the terminal and for the page in a pack."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedlora.gate.evidence.entries import (
    Configured,
    Decided,
    Entry,
    Exchange,
    Exported,
    Logged,
    Moved,
    Purpose,
    Receipted,
    Received,
    Refused,
    Released,
)
from fedlora.runtime.reports.page import render

_MOST_LINES = 2_000
_DIGITS = 12
"""Of a digest that are shown: enough to find the whole one in the log."""
_ASKED: dict[Purpose, str] = {
    "query": "who is there",
    "train": "train",
    "train.share": "secure sum: share keys",
    "train.mask": "secure sum: masked update",
    "train.sign": "secure sum: sign who is in",
    "train.reveal": "secure sum: reveal shares",
    "evaluate": "evaluate",
}
_WAYS: dict[type[Entry], str] = {Received: "in", Receipted: "in", Released: "out", Refused: "out"}


@dataclass(frozen=True, kw_only=True)
class Line:
    """An entry in words; what it has nothing to say of is empty."""

    number: int
    time: str
    """UTC, to the second."""
    way: str = ""
    """``in`` or ``out``: whether something came or left."""
    run: str = ""
    round: str = ""
    what: str
    size: int | None = None
    digest: str = ""
    """The first digits of the payload's SHA-256; of the content's, if there is no payload."""
    said: str = ""
    bad: bool = False
    """Whether something was refused."""


@dataclass(kw_only=True)
class Traffic:
    """What came in and left in one round, or in all."""

    received: int = 0
    released: int = 0
    refused: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    def add(self, entry: object) -> None:
        """Count an entry."""
        match entry:
            case Received(size=size):
                self.received += 1
                self.bytes_in += size
            case Released(size=size):
                self.released += 1
                self.bytes_out += size
            case Refused():
                self.refused += 1


def line_of(logged: Logged) -> Line:
    """Return an entry in words."""
    entry = logged.entry
    asked = entry if isinstance(entry, Exchange) else None
    moved = entry if isinstance(entry, Moved) else None
    return Line(
        number=logged.head.count,
        time=logged.time[:19].replace("T", " "),
        way=_WAYS.get(type(entry), ""),
        run=asked.run if asked else "",
        round=str(asked.round) if asked else "",
        what=_ASKED[asked.purpose] if asked else logged.kind,
        size=moved.size if moved else None,
        digest=_short(moved.payload or moved.content) if moved else "",
        said=_printable(_said(entry)),
        bad=isinstance(entry, Refused) or (isinstance(entry, Decided) and not entry.allowed),
    )


def _said(entry: Entry) -> str:
    match entry:
        case Configured():
            parts = f"fedlora {entry.version}", f"isolation {entry.isolation}"
            said = ", ".join([*parts, f"policy {_short(entry.policy)}"])
        case Received():
            said = f"recipe {_short(entry.recipe)}"
        case Decided():
            verdict = "allowed" if entry.allowed else "refused"
            said = ": ".join([verdict, *filter(None, ["; ".join(entry.reasons)])])
        case Released():
            ledger = f"ledger row {entry.ledger_count}" if entry.ledger_count is not None else ""
            said = "; ".join(filter(None, [", ".join(entry.metrics), ledger]))
        case Refused():
            said = f"{entry.said} ({entry.cause})"
        case Receipted():
            said = f"the aggregator has seen entry {entry.count}"
        case Exported():
            said = entry.to
    return said


def _printable(text: str) -> str:
    """Return a text that moves no cursor: parts of it may be an aggregator's."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _short(digest: str) -> str:
    return digest[:_DIGITS]


def by_round(entries: Iterable[Logged]) -> dict[tuple[str, int], Traffic]:
    """Return what came in and left in each run and round, in the order of their beginning."""
    rounds: dict[tuple[str, int], Traffic] = {}
    for logged in entries:
        entry = logged.entry
        if isinstance(entry, Received | Released | Refused):
            rounds.setdefault((entry.run, entry.round), Traffic()).add(entry)
    return rounds


def page_of(entries: Sequence[Logged], *, site: str, key: str) -> str:
    """Return a page of all entries, the newest lines alone where there are very many.

    Args:
        entries: oldest first.
        site: whose they are.
        key: fingerprint of the gate's key.
    """
    whole = Traffic()
    for logged in entries:
        whole.add(logged.entry)
    return render(
        "evidence.html.j2",
        site=site,
        key=key,
        whole=whole,
        count=len(entries),
        first=entries[0].time if entries else "",
        last=entries[-1].time if entries else "",
        rounds=by_round(entries),
        lines=[line_of(logged) for logged in entries[-_MOST_LINES:]],
    )
