"""From right guesses to a lower bound on ε: what one run shows, whatever the mechanism is.

The game: each of some canaries is in the data by the toss of a fair coin of its own. Whoever sees
what the mechanism releases then says of some canaries that they are in. Privacy bounds how often
that is right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_FEW = 32
"""Noise leaves something to see of the few canaries that stand out: of one in so many."""
_CLOSE = 1e-4
"""How exact a lower bound is."""


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How often it was right to say that a canary is in."""

    made: int
    right: int


def numbers_of_guesses(canaries: int, *, sampling_rate: float, steps: int) -> tuple[int, ...]:
    """Return how many guesses to make, in one try and in another: fixed before anything is seen.

    Noise as it should be hides all but few; without noise all that were drawn show, but for those
    the coins and the draws leave room. What is shown by one of several tries is worth what it is
    at a level that they share.

    Args:
        canaries: in the game.
        sampling_rate: with which a step draws each.
        steps: so far.
    """
    drawn = canaries / 2 * (1 - (1 - sampling_rate) ** steps)
    surely = math.floor(drawn - 2 * math.sqrt(canaries))  # four standard deviations below
    return tuple(sorted(n for n in {min(surely, canaries // _FEW), surely} if n > 0))


def best_guesses(
    scores: NDArray[np.float64], included: NDArray[np.bool_], numbers: Sequence[int]
) -> list[Guesses]:
    """Say of the canaries with the highest scores that they are in, so many of them in each try."""
    order = np.argsort(-scores, kind="stable")
    return [Guesses(made=n, right=int(included[order[:n]].sum())) for n in numbers]


def largest_lower_bound(
    tries: Sequence[Guesses], *, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the largest of the tries' lower bounds, which hold all together; 0 without a try."""
    each = 1 - (1 - confidence) / max(1, len(tries))
    return max(
        (epsilon_lower_bound(g, canaries=canaries, delta=delta, confidence=each) for g in tries),
        default=0.0,
    )


def epsilon_lower_bound(
    guesses: Guesses, *, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """Return an ε such that the mechanism is not (ε', δ)-private for any ε' below.

    Guarantees:
        Of a mechanism that is (ε, δ)-private, the bound exceeds ε with a probability of at most
        ``1 - confidence``, however the canaries' fates hang together. The number of guesses must
        not depend on what was seen.

    What it does not guarantee: that it is near ε. It is as large as about log(0.01 / δ) at most,
    since a mechanism that tells all with a probability near δ · canaries is private, too.

    Args:
        guesses: that canaries are in, or out; of the others nothing is said.
        canaries: each was in with a probability of 1/2, independently.
        delta: of the promise.
        confidence: below 1.

    References:
        Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, theorem 5.2.
    """
    ways = _log_ways(guesses.made)

    def contradicts(epsilon: float) -> bool:
        p = _p_value(guesses, ways, canaries=canaries, epsilon=epsilon, delta=delta)
        return p < 1 - confidence

    if not contradicts(0):
        return 0.0
    low, high = 0.0, 1.0
    while contradicts(high):
        low, high = high, 2 * high
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if contradicts(middle) else (low, middle)
    return low


def _p_value(
    guesses: Guesses, ways: NDArray[np.float64], *, canaries: int, epsilon: float, delta: float
) -> float:
    """Return the most probability of so many right guesses under (ε, δ).

    That is P[W ≥ v] + 2mδ · max over i of P[v > W ≥ v - i] / i, where W is binomial: how many of r
    answers by randomised response are right.
    """
    count = np.arange(guesses.made + 1)
    right, wrong = -math.log1p(math.exp(-epsilon)), -epsilon - math.log1p(math.exp(-epsilon))
    chances = np.exp(ways + count * right + (guesses.made - count) * wrong)
    below = np.cumsum(chances[: guesses.right][::-1]) / (count[: guesses.right] + 1)
    tail = chances[guesses.right :].sum()
    return float(tail + 2 * canaries * delta * below.max(initial=0))


def _log_ways(count: int) -> NDArray[np.float64]:
    """Return the logs of the binomial coefficients, ``(count + 1,)``."""
    factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    ways: NDArray[np.float64] = factorials[-1] - factorials - factorials[::-1]
    return ways
