"""Skellam shares: of the right distribution, alone and summed."""

import math

import mpmath
import numpy as np
import pytest

from fedlora.privacy.mechanism import KeyStream
from fedlora.privacy.secure_aggregation.skellam import add_skellam, skellam

DRAWS = 300_000


def shares(rate: int, *, count: int = DRAWS, seed: str = "s") -> np.ndarray:
    return skellam(count, rate=rate, bits=KeyStream.reproducible(f"{seed}/{rate}").bits)


def fit(values: np.ndarray, *, variance: int) -> float:
    """Return the probability that draws of the distribution fit it no better, by chi-square."""
    reach = int(4 * math.sqrt(variance)) + 2
    wanted = np.array(
        [
            float(mpmath.exp(-variance) * mpmath.besseli(k, variance)) * len(values)
            for k in range(-reach, reach + 1)
        ]
    )
    seen = np.array([(values == k).sum() for k in range(-reach, reach + 1)])
    common = wanted >= 10
    seen = np.append(seen[common], len(values) - seen[common].sum())
    wanted = np.append(wanted[common], len(values) - wanted[common].sum())
    statistic = float((((seen - wanted) ** 2) / wanted).sum())
    return float(mpmath.gammainc((len(wanted) - 1) / 2, statistic / 2, regularized=True))


@pytest.mark.parametrize("rate", [1, 10, 400])
def test_a_share_has_the_right_probabilities(rate):
    """Those of Bessel functions; the seed is fixed, and the fit no worse than 1 in 1000."""
    assert fit(shares(rate), variance=2 * rate) > 1e-3


@pytest.mark.parametrize(("rates"), [(1, 1, 1), (3, 7), (100, 100, 50)])
def test_sums_of_shares_are_distributed_as_the_whole(rates):
    """The same test, of their sum against one of their rates' sum."""
    total = sum(shares(rate, seed=f"{i}") for i, rate in enumerate(rates))
    assert fit(total, variance=2 * sum(rates)) > 1e-3


@pytest.mark.parametrize("rate", [1, 50, 10**6, 10**14, 10**16])
def test_variance_is_twice_the_rate(rate):
    """And the mean 0, both within four deviations of their estimates."""
    values = shares(rate).astype(float)
    assert abs(values.mean()) < 4 * math.sqrt(2 * rate / DRAWS)
    assert abs((values**2).mean() / (2 * rate) - 1) < 4 * math.sqrt((2 + 1 / (2 * rate)) / DRAWS)


def test_a_rate_of_zero_is_no_noise():
    """As the formulas say."""
    assert not shares(0, count=9).any()


def test_noise_is_added_modulo_2_to_the_32():
    """In place, to each value its own; what wraps around comes back when it is taken off."""
    values = np.arange(70_000, dtype=np.uint32) * np.uint32(61_357)
    before = values.copy()
    add_skellam(values, rate=10**16, bits=KeyStream.reproducible("n").bits)
    bits = KeyStream.reproducible("n").bits
    noise = np.concatenate([skellam(n, rate=10**16, bits=bits) for n in (2**16, 70_000 - 2**16)])
    assert np.array_equal((values.astype(np.int64) - noise) % 2**32, before)


def test_without_a_source_no_two_draws_are_equal():
    """They are drawn with a key that nobody has."""
    one, other = np.zeros((2, 100), np.uint32)
    add_skellam(one, rate=10**12)
    add_skellam(other, rate=10**12)
    assert not np.array_equal(one, other)
