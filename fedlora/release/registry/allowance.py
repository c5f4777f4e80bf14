"""How much a caller may ask."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from grpc import StatusCode

from fedlora.release.registry.limits import Limits
from fedlora.release.registry.refused import Refused

_MOST_KNOWN = 10_000
"""Callers whose rate is remembered; whoever came longest ago is forgotten first."""
_SILENCE_S = 60
"""Between two of the log's lines about a caller who asks too often."""


@dataclass
class _Bucket:
    """What a caller has left."""

    level: float
    since: float
    """When it had that."""
    refused: int = 0
    """Calls, since the log was told of them."""
    told: float = -math.inf
    """When that was."""


class Allowance:
    """What each caller has left: calls a second, from a bucket that fills up, and calls at once.

    Args:
        limits: for each caller.
        clock: gives seconds.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._under_way: dict[str, int] = {}

    def take(self, caller: str) -> None:
        """Take one call out of a caller's bucket.

        Raises:
            Refused: it is empty.
        """
        now = self._clock()
        bucket = self._buckets.pop(caller, _Bucket(self._limits.burst, now))
        earned = (now - bucket.since) * self._limits.rate
        bucket.level, bucket.since = min(bucket.level + earned, self._limits.burst), now
        self._buckets[caller] = bucket
        if len(self._buckets) > _MOST_KNOWN:
            self._buckets.popitem(last=False)
        if bucket.level >= 1:
            bucket.level -= 1
            return
        bucket.refused += 1
        times = 0
        if now - bucket.told >= _SILENCE_S:
            times, bucket.refused, bucket.told = bucket.refused, 0, now
        raise _too_much(f"{self._limits.rate:g} calls a second", times=times)

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


def _too_much(what: str, *, times: int = 1) -> Refused:
    message = f"More than {what}. Wait a little."
    return Refused(StatusCode.RESOURCE_EXHAUSTED, message, times=times)
