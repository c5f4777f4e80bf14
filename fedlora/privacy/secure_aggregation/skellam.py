"""Shares of Skellam noise: exact, from a cryptographic source, and closed under sums."""

import numpy as np
from numpy.typing import NDArray

from fedlora.privacy.mechanism import KeyStream
from fedlora.privacy.secure_aggregation.poisson import Integers, RandomBits, poisson

_BLOCK = 2**16


def skellam(count: int, *, rate: int, bits: RandomBits) -> Integers:
    """Return ``(count,)`` independent symmetric Skellam variables of variance ``2 · rate``.

    Guarantees:
        - Exact, as ``Poisson``: each is the difference of two Poisson variables of mean ``rate``.
        - The sum of such variables is one, whose rate is the sum of theirs.

    References:
        Skellam 1946, doi:10.2307/2981372.
    """
    if not rate:
        return np.zeros(count, np.int64)
    of_rate = poisson(rate)
    return of_rate.draw(count, bits) - of_rate.draw(count, bits)


def add_skellam(values: NDArray[np.uint32], *, rate: int, bits: RandomBits | None = None) -> None:
    """Add symmetric Skellam noise of variance ``2 · rate`` to numbers modulo 2³², in place.

    Args:
        values: ``(d,)``.
        rate: of each value's noise.
        bits: where it is drawn from; none: a key stream with a fresh key of the system's.
    """
    drawn_from = bits or KeyStream.secure().bits
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        part += skellam(len(part), rate=rate, bits=drawn_from).astype(np.uint32)
