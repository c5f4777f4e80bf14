"""How much a caller may ask."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from grpc import StatusCode

from fedlora.release.registry.limits import Limits
from fedlora.release.registry.refused import Refused

_MOST_KNOWN = 10_000
"""Callers whose rate is remembered; whoever came longest ago is forgotten first."""


class Allowance:
    """What each caller has left: calls a second, from a bucket that fills up, and calls at once.

    Args:
        limits: for each caller.
        clock: gives seconds.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._under_way: dict[str, int] = {}

    def take(self, caller: str) -> None:
        """Take one call out of a caller's bucket.

        Raises:
            Refused: it is empty.
        """
        now = self._clock()
        level, since = self._buckets.pop(caller, (float(self._limits.burst), now))
        level = min(level + (now - since) * self._limits.rate, self._limits.burst)
        self._buckets[caller] = (level - 1 if level >= 1 else level, now)
        if len(self._buckets) > _MOST_KNOWN:
            self._buckets.popitem(last=False)
        if level < 1:
            raise _too_much(f"{self._limits.rate:g} calls a second")

    @contextmanager
    def place(self, caller: str) -> Iterator[None]:
        """Count a call as under way during the block.

        Raises:
            Refused: there are too many already.
        """
        before = self._under_way.get(caller, 0)
        if before >= self._limits.calls_each:
            raise _too_much(f"{self._limits.calls_each} calls at once")
        self._under_way[caller] = before + 1
        try:
            yield
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller]


def _too_much(what: str) -> Refused:
    return Refused(StatusCode.RESOURCE_EXHAUSTED, f"More than {what}. Wait a little.")
