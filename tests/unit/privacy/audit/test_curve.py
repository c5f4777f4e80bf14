"""Guesses against a whole curve of promises."""

import math

import numpy as np
import pytest

from fedlora.privacy.audit.curve import contradicted, curve_of
from fedlora.privacy.audit.one_run import Guesses, numbers_of_guesses


def tail(made: int, right: int, chance: float) -> float:
    """Return the probability of so many right answers, each right by a chance of its own."""
    terms = (
        math.comb(made, n) * chance**n * (1 - chance) ** (made - n) for n in range(right, made + 1)
    )
    return math.fsum(terms)


@pytest.mark.parametrize(("epsilon", "made"), [(0.3, 30), (1.0, 90), (2.5, 300)])
def test_what_randomised_response_does_is_no_contradiction(epsilon, made):
    """It is exactly ε-private, so no number of right guesses is less probable than with it.

    All right is contradicted nevertheless: it is below 1e-5 there.
    """
    chance = 1 / (1 + math.exp(-epsilon))

    def found(right: int, level: float) -> bool:
        tries = [Guesses(made=made, right=right)]
        return contradicted([(epsilon, 0.0)], tries, canaries=2 * made, confidence=1 - level)

    for right in range(made + 1):
        assert not found(right, 0.99 * tail(made, right, chance))
    assert found(made, 1e-2)


def gaussian_curve(deviation: float):
    """Return the curve of a sum of sensitivity 1 with normal noise (Balle and Wang 2018)."""

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta_at(epsilon: float) -> float:
        half, shift = 1 / (2 * deviation), epsilon * deviation
        return normal(half - shift) - math.exp(epsilon) * normal(-half - shift)

    def epsilon_at(delta: float) -> float:
        low, high = 0.0, 60.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
        return high

    return curve_of(epsilon_at)


def play(draw, *, deviation: float, canaries: int) -> list[Guesses]:
    """Return tries of a game in which each canary is seen through normal noise of its own."""
    included = draw.random(canaries) < 0.5
    order = np.argsort(-(included + deviation * draw.standard_normal(canaries)))
    numbers = numbers_of_guesses(canaries, sampling_rate=1.0, steps=1)
    return [Guesses(made=n, right=int(included[order[:n]].sum())) for n in numbers]


def test_noise_as_promised_is_not_contradicted():
    """In none of 200 games, at a confidence that would allow ten."""
    draw, curve = np.random.default_rng(2), gaussian_curve(0.6)
    assert not any(
        contradicted(
            curve, play(draw, deviation=0.6, canaries=2000), canaries=2000, confidence=0.95
        )
        for _ in range(200)
    )


@pytest.mark.parametrize("deviation", [0.0, 0.1])
def test_less_noise_than_promised_is_contradicted(deviation):
    """Where a lower bound on ε at one δ shows little."""
    draw, curve = np.random.default_rng(3), gaussian_curve(0.6)
    tries = play(draw, deviation=deviation, canaries=5000)
    assert contradicted(curve, tries, canaries=5000, confidence=0.99)


def test_nothing_said_is_nothing_contradicted():
    """Nor are guesses that are wrong."""
    assert not contradicted([(0.0, 0.0)], [], canaries=100, confidence=0.95)
    wrong = [Guesses(made=50, right=0)]
    assert not contradicted([(0.0, 0.0)], wrong, canaries=100, confidence=0.95)


def test_what_is_not_finite_is_no_promise():
    """An accountant that gives up at a δ promises nothing there."""
    curve = curve_of(lambda delta: math.inf if delta < 1e-3 else 1.0)
    assert {epsilon for epsilon, _ in curve} == {1.0}
    assert min(delta for _, delta in curve) == 1e-3
