"""Captured traffic of a site, explained: what of it the evidence has, and what the rest is.

Three things are put beside each other: the bytes that a proxy counted between SuperNode and
aggregator, the bodies of the HTTP requests inside, and the entries of the site's evidence log. They
must add up, both ways and to the byte.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedlora.errors import EvidenceError
from fedlora.gate.evidence.entries import Logged, Received, Released

_FLEET = "/v1/fleet/"
_UP = frozenset({f"{_FLEET}push-messages", f"{_FLEET}push-object"})
"""Paths whose requests carry what a site answers."""
_DOWN = frozenset({f"{_FLEET}pull-messages", f"{_FLEET}pull-object"})
"""Paths whose responses carry what a site is asked."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """An HTTP request and its response, seen behind TLS."""

    path: str
    request: int
    """Bytes of the request's body."""
    response: int
    """Bytes of the response's body."""


@dataclass(frozen=True, kw_only=True)
class Category:
    """Bytes of one sort, from the site and to it."""

    name: str
    up: int
    down: int


def explain(
    exchanges: Iterable[Exchange], entries: Iterable[Logged], *, up: int, down: int
) -> Sequence[Category]:
    """Return what a capture's bytes are.

    Args:
        exchanges: all of the capture.
        entries: those of the site's log while the capture was made.
        up: bytes that the proxy counted from the site, TLS and all.
        down: bytes that it counted to the site.

    Guarantees:
        - The categories add up to ``up`` and to ``down``, and none is negative.

    Raises:
        EvidenceError: the log has more than was carried, or more was carried than was on the wire.
    """
    exchanges, moved = list(exchanges), [logged.entry for logged in entries]
    released = sum(entry.size for entry in moved if isinstance(entry, Released))
    received = sum(entry.size for entry in moved if isinstance(entry, Received))
    pushed = sum(each.request for each in exchanges if each.path in _UP)
    pulled = sum(each.response for each in exchanges if each.path in _DOWN)
    bodies_up = sum(each.request for each in exchanges)
    bodies_down = sum(each.response for each in exchanges)
    categories = (
        Category(name="payloads, as the evidence has them", up=released, down=received),
        Category(
            name="Flower's messages around them", up=pushed - released, down=pulled - received
        ),
        Category(name="control and heartbeats", up=bodies_up - pushed, down=bodies_down - pulled),
        Category(name="HTTP headers and TLS", up=up - bodies_up, down=down - bodies_down),
    )
    for each in categories:
        if min(each.up, each.down) < 0:
            raise EvidenceError(
                f"{each.name}: {each.up:,} bytes up and {each.down:,} down are left over. A "
                "negative number says that the log, the requests and the wire are not of the same "
                "traffic, or that one of them is not complete."
            )
    return categories


def show(categories: Sequence[Category]) -> None:
    """Print the categories, their share, and their sum."""
    width = max(len(each.name) for each in categories)
    total = sum(each.up + each.down for each in categories)
    print(f"{'':{width}}  {'bytes up':>14}  {'bytes down':>14}  {'share':>7}")
    for each in categories:
        share = (each.up + each.down) / total if total else 0
        print(f"{each.name:{width}}  {each.up:14,}  {each.down:14,}  {share:7.2%}")
    up, down = sum(each.up for each in categories), sum(each.down for each in categories)
    print(f"{'on the wire':{width}}  {up:14,}  {down:14,}")
