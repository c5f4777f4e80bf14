"""Exact Poisson variables: of the right distribution, whatever floats do."""

import math

import mpmath
import numpy as np
import pytest

from fedlora.privacy.mechanism import KeyStream
from fedlora.privacy.secure_aggregation.poisson import Poisson

DRAWS = 400_000
RATES = [1, 2, 10, 300, 20_000, 10**8, 10**14, 2**58]
FEW = [1, 2, 3, 10, 41]


def drawn(rate: int, *, count: int = DRAWS, seed: str = "p") -> np.ndarray:
    return Poisson(rate).draw(count, KeyStream.reproducible(f"{seed}/{rate}").bits)


def log_probability(value: int, rate: int) -> mpmath.mpf:
    with mpmath.workdps(60):
        return value * mpmath.log(rate) - rate - mpmath.loggamma(value + 1)


def chi_square(seen: np.ndarray, wanted: np.ndarray) -> float:
    """Return the probability of a fit no better than this."""
    statistic = float((((seen - wanted) ** 2) / wanted).sum())
    return float(mpmath.gammainc((len(wanted) - 1) / 2, statistic / 2, regularized=True))


@pytest.mark.parametrize("rate", FEW)
def test_small_rates_have_the_right_probabilities(rate):
    """Each value's share, by chi-square; the seed is fixed, and the fit no worse than 1 in 1000."""
    values = drawn(rate) + rate
    assert values.min() >= 0
    wanted = np.array(
        [float(mpmath.exp(log_probability(v, rate))) * DRAWS for v in range(6 * rate + 20)]
    )
    seen = np.bincount(values, minlength=len(wanted))
    assert len(seen) == len(wanted)
    common = wanted >= 10
    rest = DRAWS - wanted[common].sum(), DRAWS - seen[common].sum()
    assert chi_square(np.r_[seen[common], rest[1]], np.r_[wanted[common], rest[0]]) > 1e-3


@pytest.mark.parametrize("rate", [r for r in RATES if r >= 300])
def test_large_rates_have_the_right_distribution(rate):
    """By Kolmogorov's distance, at points, from the distribution function itself.

    The seed is fixed; a distance as large as this would be 1 in 1000 among others.
    """
    values = np.sort(drawn(rate))
    with mpmath.workdps(30):
        for z in (-3, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 3):
            point = int(z * math.sqrt(rate))
            below = np.searchsorted(values, point, side="right") / DRAWS
            true = poisson_cdf(rate + point, rate)
            assert abs(below - true) < 3.3 * math.sqrt(true * (1 - true) / DRAWS)


def poisson_cdf(value: int, rate: int) -> float:
    """Return P(X <= value); for large rates by the expansion of Cornish, Fisher and Edgeworth."""
    if rate <= 20_000:
        return float(mpmath.gammainc(value + 1, rate, regularized=True))
    z = mpmath.mpf(value + 0.5 - rate) / mpmath.sqrt(rate)
    return float(mpmath.ncdf(z) - mpmath.npdf(z) * (z**2 - 1) / (6 * mpmath.sqrt(rate)))


@pytest.mark.parametrize("rate", RATES)
def test_mean_and_variance_are_the_rate(rate):
    """Within four deviations of their estimates."""
    values = drawn(rate).astype(float)
    assert abs(values.mean()) < 4 * math.sqrt(rate / DRAWS)
    fourth = 2 + 1 / rate
    assert abs((values**2).mean() / rate - 1) < 4 * math.sqrt(fourth / DRAWS)


@pytest.mark.parametrize("rate", RATES)
def test_every_slot_takes_values_with_their_own_probability(rate):
    """The proof in numbers: for each slot, its bin's most probable value is no more than certain.

    And what 24 bits decide, holds for the bin's least probable value: neither is a float's word.
    """
    sampler = Poisson(rate)
    assert len(sampler._start) == len(sampler._sure) == len(sampler._slots) == 2**16
    starts, at = np.unique(sampler._start[2:], return_index=True)
    assert set(np.diff(starts)) <= {sampler._width}
    for start, place in zip(starts.tolist(), (at + 2).tolist(), strict=True):
        slots = int(sampler._slots[place])
        assert (sampler._start[2:] == start).sum() == slots
        with mpmath.workdps(60):
            ends = [
                mpmath.exp(log_probability(rate + k, rate) - log_probability(rate, rate))
                for k in (start, start + sampler._width - 1)
            ]
        assert sampler._height * max(ends) <= slots
        assert int(sampler._sure[place]) <= sampler._height * min(ends) / slots * 2**24
    if sampler._width > 1:  # most are decided at once
        assert sampler._sure.mean() > 0.97 * 2**24


@pytest.mark.parametrize("rate", RATES)
def test_the_slots_of_the_tails_hold_all_that_lies_beyond_the_bins(rate):
    """At the end of the bins, and after each stretch of half the share, it is enough."""
    sampler = Poisson(rate)
    with mpmath.workdps(60):
        for stretch in (0, 1, 2, 10):
            beyond = stretch * sampler._stretch
            for value in (sampler._edge + beyond, -sampler._edge - 1 - beyond):
                if value < -rate:
                    continue
                ratio = mpmath.exp(
                    log_probability(rate + value, rate) - log_probability(rate, rate)
                )
                share = mpmath.mpf(2) ** -(stretch + 1) / sampler._stretch
                assert sampler._height * ratio / sampler._width <= share


@pytest.mark.parametrize("rate", [20_000, 10**8, 10**14, 2**58])
def test_floats_are_as_close_as_their_error_says(rate):
    """All over the bins, against 60 digits."""
    sampler = Poisson(rate)
    values = np.linspace(-sampler._edge, sampler._edge, 301).astype(np.int64)
    found = sampler._log_ratio(values)
    with mpmath.workdps(60):
        of_rate = log_probability(rate, rate)
        off = [
            abs(mpmath.mpf(f) - (log_probability(rate + int(v), rate) - of_rate))
            for f, v in zip(found.tolist(), values.tolist(), strict=True)
        ]
    assert max(off) < sampler._error / 4


class Words:
    """Gives the words that a test wants, and remembers how many were asked for."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)
        self.asked = 0

    def __call__(self, count: int) -> np.ndarray:
        self.asked += count
        given, self.words = self.words[:count], self.words[count:]
        return np.array(given + [2**63] * (count - len(given)), np.uint64)


def exact_threshold(sampler: Poisson, slot: int, *, bits: int) -> int:
    """Return the largest whole number of 2⁻ᵇⁱᵗˢ that is below what a slot's first value takes."""
    rate, value = sampler.rate, int(sampler._start[slot])
    with mpmath.workdps(120):
        ratio = mpmath.exp(log_probability_exact(rate + value, rate))
        chance = sampler._height * ratio / int(sampler._slots[slot])
        return int(mpmath.floor(chance * mpmath.mpf(2) ** bits))


def log_probability_exact(value: int, rate: int) -> mpmath.mpf:
    """Return the logarithm of a value's probability over the rate's."""
    return (
        (value - rate) * mpmath.log(rate) + mpmath.loggamma(rate + 1) - mpmath.loggamma(value + 1)
    )


@pytest.mark.parametrize("rate", [10, 10**14])
@pytest.mark.parametrize(("step", "taken"), [(-1, True), (1, False)])
def test_what_floats_cannot_decide_is_decided_with_more_digits(rate, step, taken):
    """A uniform number that agrees with the threshold in 117 bits and differs in the next."""
    sampler = Poisson(rate)
    slot = 2 + int(
        np.argmin(sampler._start[2:])
    )  # a bin of the left end: floats are at their worst
    known = 24 if rate == 10 else 53
    threshold = exact_threshold(sampler, slot, bits=known + 64) + step
    first, rest = threshold >> 64, threshold & (2**64 - 1)
    word = (slot << 48) | ((first >> (known - 24)) << 24)
    extra = [] if rate == 10 else [(first & (2**29 - 1)) << 35]
    words = Words(*extra, rest)
    found = sampler._taken(np.array([word], np.uint64), words)
    assert found.tolist() == ([int(sampler._start[slot])] if taken else [])
    assert words.asked == len(extra) + 1


def test_a_tie_is_decided_by_later_bits():
    """Where 53 and 64 more bits are the threshold's own, 64 further ones are drawn."""
    sampler = Poisson(10**14)
    slot = 2
    threshold = exact_threshold(sampler, slot, bits=53 + 64)
    first, rest = threshold >> 64, threshold & (2**64 - 1)
    word = (slot << 48) | ((first >> 29) << 24)
    for last, taken in ((0, True), (2**64 - 1, False)):
        words = Words((first & (2**29 - 1)) << 35, rest, last)
        found = sampler._taken(np.array([word], np.uint64), words)
        assert len(found) == taken
        assert words.asked == 3


@pytest.mark.parametrize("slot", [0, 1])
def test_values_beyond_the_bins_come_from_the_tails(slot):
    """With the probability that is theirs: two heads and a place make the third stretch's value."""
    sampler = Poisson(10**8)
    place, low = 5, Words(0, 0, 1, 5, 0)
    value = sampler._edge + 2 * sampler._stretch + place
    wanted = value if slot else -value - 1
    word = np.array([slot << 48], np.uint64)
    assert sampler._taken(word, low).tolist() == [wanted]
    assert sampler._taken(word, Words(0, 0, 1, 5, 2**64 - 1)).tolist() == []


def test_a_negative_variable_is_never_drawn():
    """What the lower tail proposes of them is refused, even of the smallest uniform number."""
    words = Words(1, 3, 0, 0, 0)
    assert Poisson(1)._taken(np.array([0], np.uint64), words).tolist() == []


def test_draws_depend_on_all_random_bits_alone():
    """Equal bits make equal draws; others make others."""
    assert np.array_equal(drawn(10**9, count=70_000), drawn(10**9, count=70_000))
    assert not np.array_equal(drawn(10**9, count=9), drawn(10**9, count=9, seed="q"))
