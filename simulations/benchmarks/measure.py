"""Interleaved timing, the table that a person reads, and the line that a machine reads."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One comparison of ours with a peer, in cost: lower is better."""

    name: str
    ours: float
    peer: float
    ratio: float
    """Median over the repetitions of ours / peer, each pair measured one after the other."""
    unit: str
    n: int
    holds: bool | None
    """Whether the ratio is within the bar; none where there is no bar."""


def interleaved(variants: Mapping[str, Callable[[], None]], *, n: int) -> dict[str, list[float]]:
    """Return the seconds of each variant, run in turn ``n`` times after one uncounted warm-up.

    Each repetition begins with another variant, so that none always runs in another's wake.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(n + 1):
        first = repetition % len(variants)
        items = list(variants.items())
        for name, work in items[first:] + items[:first]:
            started = time.perf_counter()
            work()
            if repetition > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(
    name: str,
    seconds: Mapping[str, list[float]],
    *,
    ours: str,
    peer: str,
    at_most: float | None = None,
) -> Bar:
    """Compare two variants pair by pair."""
    pairs = zip(seconds[ours], seconds[peer], strict=True)
    ratio = median(a / b for a, b in pairs)
    return Bar(
        name=name,
        ours=median(seconds[ours]),
        peer=median(seconds[peer]),
        ratio=ratio,
        unit="s",
        n=len(seconds[ours]),
        holds=None if at_most is None else ratio <= at_most,
    )


def once(name: str, *, ours: float, peer: float, unit: str, at_most: float | None = None) -> Bar:
    """Compare what was measured once."""
    ratio = ours / peer
    holds = None if at_most is None else ratio <= at_most
    return Bar(name=name, ours=ours, peer=peer, ratio=ratio, unit=unit, n=1, holds=holds)


def report(name: str, bars: list[Bar], limits: Mapping[str, float]) -> None:
    """Print the table, then one JSON object as the last line."""
    width = max(len(bar.name) for bar in bars)
    print(f"{'':{width}}  {'ours':>8}  {'peer':>8}  {'ratio':>8}  {'bar':>8}")
    for bar in bars:
        limit = _shown(limits[bar.name]) if bar.name in limits else ""
        verdict = {True: "holds", False: "MISSED", None: ""}[bar.holds]
        print(
            f"{bar.name:{width}}  {_shown(bar.ours):>8}  {_shown(bar.peer):>8}"
            f"  {_shown(bar.ratio):>8}  {limit:>8}  {verdict}"
        )
    first, holds = bars[0], all(bar.holds is not False for bar in bars)
    nested = {bar.name: asdict(bar) for bar in bars}
    print(json.dumps(asdict(first) | {"name": name, "holds": holds, "bars": nested}))


def _shown(value: float) -> str:
    """Return a number with three digits, or with all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
