"""Exact Poisson variables, of any size, from random bits: no draw depends on a float's rounding."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

RandomBits = Callable[[int], NDArray[np.uint64]]
"""Returns so many independent, uniform 64-bit numbers."""
Integers = NDArray[np.int64]

MOST_RATE = 2**58
_SLOT_BITS, _PREFIX_BITS = 16, 24
_SLOTS, _PREFIXES = 2**_SLOT_BITS, 2**_PREFIX_BITS
_TAILS = 2
"""The first slots: below all bins, and above them."""
_BINS = 64
"""Least bins to a standard deviation, if it is that large."""
_FRACTION = 53
_GUARD = 32
"""Bits beyond those of U to which probabilities are known, and bits of mpmath's beyond them."""
_PROPOSALS = 2**16


class Poisson:
    """Draws ``X - rate`` of Poisson variables X by rejection.

    Values near the rate are in bins of equal width, a power of 2, each of which holds a whole
    number of the 2¹⁶ slots. A proposal is a slot, a place in its bin and a uniform U, and is taken
    if ``U · slots < height · p(X) / p(rate)``. The slots of a bin are at least the right side's
    most in it, so that taken proposals have exactly the Poisson distribution. Beyond the bins is a
    slot on each side, whose share falls by half over stretches of a power of 2, over which
    probabilities fall by more.

    Guarantees:
        - The comparison is decided as with real numbers, and U has as many bits as that takes. Its
          first 24 bits are compared with a whole number that holds for all of a bin, rounded
          towards "not decided"; then 53 bits in float64, if they are farther apart than its error;
          then 64 bits more at a time, with as many digits.

    What it does not hide: how long a draw took.

    The error in float64: with t = k / rate, the logarithm of ``p(rate + k) / p(rate)`` is ``-rate
    ((1 + t) log(1 + t) - t) - log(1 + t) / 2 - d(rate + k) + d(rate)``, with d(n) between
    ``1 / 12n - 1 / 360n³`` and ``1 / 12n`` (Loader 2000, Fast and accurate computation of binomial
    probabilities). Here the rate is above 2¹³ and t between -1/10 and 1/10. t and the difference
    lose less than ``2⁻⁵⁰ abs(k)``, if ``log1p`` is right to an ulp or two, and the rest 2⁻⁴⁰.

    Args:
        rate: a whole number from 1 to 2⁵⁸; mean and variance.

    References:
        von Neumann 1951, Various techniques used in connection with random digits; the slots are
        those of Marsaglia 1963, doi:10.1145/366193.366228.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._context = MPContext()
        deviation = math.isqrt(rate)
        self._width = 1 << (max(1, deviation // _BINS).bit_length() - 1)
        self._per_deviation = deviation // self._width
        self._lay_bins()
        self._error = 2 * (self._edge * 2.0**-50 + 2.0**-40)

    def draw(self, count: int, bits: RandomBits) -> Integers:
        """Return ``(count,)`` independent values of ``X - rate``."""
        drawn = np.empty(count, np.int64)
        done = 0
        while done < count:
            taken = self._taken(bits(min(count - done + 8, _PROPOSALS)), bits)[: count - done]
            drawn[done : done + len(taken)] = taken
            done += len(taken)
        return drawn

    def _lay_bins(self) -> None:
        """Find how far the bins reach, how high they are, and which slots are whose."""
        bins = 4 * self._per_deviation
        while True:
            bins += self._per_deviation
            self._edge = bins * self._width
            starts = [j * self._width for j in range(-bins, bins)]
            # Below the rate probabilities grow, from it on they fall: the ends are the extremes.
            ends = [(self._bounds(k), self._bounds(k + self._width - 1)) for k in starts]
            self._height, slots = _heights([max(first[1], last[1]) for first, last in ends])
            self._stretch = _stretch(self.rate, self._edge)
            beyond = 2 * self._height * self._stretch * self._bounds(self._edge)[1]
            if beyond <= self._width << _GUARD:
                break
        slots[bins] += _SLOTS - _TAILS - sum(slots)
        sure = [
            (self._height * min(first[0], last[0]) * _PREFIXES) // (max(count, 1) << _GUARD)
            for (first, last), count in zip(ends, slots, strict=True)
        ]
        filled = (np.repeat(of_bins, slots) for of_bins in (starts, sure, slots))
        self._start, self._sure, self._slots = (np.pad(f, (_TAILS, 0)) for f in filled)

    def _taken(self, words: NDArray[np.uint64], bits: RandomBits) -> Integers:
        """Return what is taken of proposals, one a word: its slot, 24 bits of U, its place."""
        slot = (words >> np.uint64(64 - _SLOT_BITS)).astype(np.intp)
        prefix = (words >> np.uint64(_PREFIX_BITS)).astype(np.uint32) & np.uint32(_PREFIXES - 1)
        value = self._start[slot] + (words & np.uint64(self._width - 1)).astype(np.int64)
        taken = prefix < self._sure[slot]
        open_ = np.flatnonzero(~taken)
        in_bins = open_[slot[open_] >= _TAILS]
        for place in open_[slot[open_] < _TAILS]:
            value[place], taken[place] = self._from_tail(int(slot[place]), bits)
        taken[in_bins] = self._takes(value[in_bins], slot[in_bins], prefix[in_bins], bits=bits)
        return value[taken]

    def _takes(
        self,
        value: Integers,
        slot: NDArray[np.intp],
        prefix: NDArray[np.uint32],
        *,
        bits: RandomBits,
    ) -> NDArray[np.bool_]:
        """Return which proposals are taken whose 24 bits do not say."""
        share = self._slots[slot]
        known, uniform = _PREFIX_BITS, prefix.astype(np.int64)
        if self._width == 1:
            taken, unsure = np.zeros(len(value), bool), np.arange(len(value))
        else:
            more = _FRACTION - known
            known = _FRACTION
            added = bits(len(value)) >> np.uint64(64 - more)
            uniform = (uniform << more) | added.astype(np.int64)
            chance = np.exp(self._log_ratio(value)) * (self._height / share)
            taken = (uniform + 1) * 2.0**-known <= chance * (1 - self._error)
            lost = uniform * 2.0**-known >= chance * (1 + self._error)
            unsure = np.flatnonzero(~(taken | lost))
        for i in unsure:
            taken[i] = self._below(
                int(uniform[i]),
                known,
                int(value[i]),
                times=self._height,
                over=int(share[i]),
                bits=bits,
            )
        return taken

    def _from_tail(self, slot: int, bits: RandomBits) -> tuple[int, bool]:
        """Return a proposal from beyond the bins, and whether it is taken."""
        stretch = 0
        while not int(bits(1)[0]) & 1:
            stretch += 1
        beyond = stretch * self._stretch + int(bits(1)[0]) % self._stretch
        value = self._edge + beyond if slot else -self._edge - 1 - beyond
        times = self._height * self._stretch << (stretch + 1)
        return value, self._below(0, 0, value, times=times, over=self._width, bits=bits)

    def _below(
        self, uniform: int, known: int, value: int, *, times: int, over: int, bits: RandomBits
    ) -> bool:
        """Return whether U is below ``times / over · p(rate + value) / p(rate)``.

        Args:
            uniform: the first ``known`` bits of U; the others are drawn here.
            known: how many there are.
            value: ``X - rate``; a negative X has no probability.
            times: at most what makes the right side 1.
            over: likewise.
            bits: where they are drawn from.
        """
        while True:
            low, high = self._bounds(value, precision=known)
            if (uniform + 1) * over << _GUARD <= times * low:
                return True
            if uniform * over << _GUARD >= times * high:
                return False
            uniform, known = (uniform << 64) | int(bits(1)[0]), known + 64

    def _bounds(self, value: int, *, precision: int = 0) -> tuple[int, int]:
        """Return bounds of ``p(rate + value) / p(rate)``, times 2^(precision + 32)."""
        if value < -self.rate:
            return 0, 0
        context, digits = self._context, precision + _GUARD
        # The logarithms are below 2⁶⁵.
        with context.workprec(digits + 66 + _GUARD):
            logarithm = (
                value * context.log(self.rate)
                + context.loggamma(self.rate + 1)
                - context.loggamma(self.rate + value + 1)
            )
            about = int(context.ldexp(context.exp(logarithm), digits))
        return max(0, about - 1), about + 2

    def _log_ratio(self, value: Integers) -> NDArray[np.float64]:
        """Return ``log(p(rate + value) / p(rate))``, as the class says."""
        t = value / self.rate
        log = np.log1p(t)
        ratio: NDArray[np.float64] = self.rate * (t - (1 + t) * log) - log / 2
        return ratio + t / (12 * self.rate * (1 + t))


@lru_cache(maxsize=4)
def poisson(rate: int) -> Poisson:
    """Return the sampler of a rate; it takes a moment to make."""
    return Poisson(rate)


def _heights(most: list[int]) -> tuple[int, list[int]]:
    """Return the largest height with which bins fill the slots, and the slots of each.

    Args:
        most: largest probability in each bin over that of the rate, in units of 2⁻³².
    """

    def slots(height: int) -> list[int]:
        return [-(-height * ratio >> _GUARD) for ratio in most]

    low, high = 1, _SLOTS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(slots(middle)) <= _SLOTS - _TAILS else (low, middle - 1)
    return low, slots(low)


def _stretch(rate: int, edge: int) -> int:
    """Return the least power of 2 over which probabilities beyond the bins fall by half or more.

    From one value to the next they fall by ``1 + (edge + 1) / rate`` or more, whose logarithm is at
    least ``(edge + 1) / (rate + edge + 1)``; log 2 is below 7/10.
    """
    stretch = 1
    while 10 * stretch * (edge + 1) < 7 * (rate + edge + 1):
        stretch *= 2
    return stretch
