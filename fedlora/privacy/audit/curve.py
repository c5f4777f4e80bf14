"""Whether right guesses contradict all that an accountant says, at every δ at once.

A lower bound on ε at one δ asks of any mechanism that is (ε, δ)-private, however strange, and so it
shows little. An accountant promises far more than one pair: a curve of them. Guesses that no
mechanism on that curve allows show that the mechanism is not the one that was accounted for.
"""

import math
from collections.abc import Callable, Sequence

from fedlora.privacy.audit.one_run import Guesses

DELTAS = (0.5, 0.2, 0.1, 0.03, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Where an accountant's curve is looked at; each place alone is an upper bound."""

Curve = Sequence[tuple[float, float]]
"""Pairs (ε, δ), for all of which a mechanism is promised to be private."""


def curve_of(epsilon_at: Callable[[float], float]) -> Curve:
    """Return the pairs for an accountant that gives an ε for each δ."""
    pairs = [(epsilon_at(delta), delta) for delta in DELTAS]
    return [pair for pair in pairs if math.isfinite(pair[0])]


def contradicted(
    curve: Curve, tries: Sequence[Guesses], *, canaries: int, confidence: float
) -> bool:
    """Return whether one of several tries, fixed beforehand, contradicts the curve.

    Guarantees:
        A mechanism that keeps to the curve is contradicted with a probability of at most
        ``1 - confidence``, however the canaries' fates hang together.

    Args:
        curve: what is promised for one canary more or less.
        tries: guesses that canaries are in; no guess says that one is out.
        canaries: each was in with a probability of 1/2, independently.
        confidence: below 1.
    """
    level = (1 - confidence) / max(1, len(tries))
    return any(_contradicts(curve, g, canaries=canaries, level=level) for g in tries)


def _contradicts(curve: Curve, guesses: Guesses, *, canaries: int, level: float) -> bool:
    """Return whether so many right guesses have a probability below ``level``.

    Suppose that they have this probability. For a canary drawn at random let ``right[i]`` be the
    probability that it is in, is said to be in, and at least i guesses are right, and ``wrong[i]``
    that it is out but is said to be in, and at least i are right. Were it out where it is in, one
    guess less would be right: so privacy bounds ``right[i + 1]`` by what ``wrong[i]`` is. Going
    down from what was seen, both grow; but together they cannot be more than the share of the
    canaries of which anything is said.

    References:
        Mahloujifar, Melis and Chaudhuri 2025, arXiv:2410.22235. Theirs is for guesses of both
        kinds; where all say "in", one condition on both coins becomes one for each, hence the 2.
    """
    share = guesses.made / canaries
    right = level * guesses.right / canaries
    wrong = level * (guesses.made - guesses.right) / canaries
    for count in range(guesses.right - 1, -1, -1):
        least = _least_wrong(curve, 2 * right) / 2
        if least <= wrong:
            return False
        right += (least - wrong) * count / (guesses.made - count)
        wrong = least
        if right + wrong > share:
            return True
    return False


def _least_wrong(curve: Curve, right: float) -> float:
    """Return the least probability, of a canary that is out, of what is seen of one that is in.

    By definition of privacy for the pair (ε, δ), of the event and of its opposite: ``right`` is at
    most exp(ε) · wrong + δ, and 1 - wrong at most exp(ε) · (1 - right) + δ.
    """
    return max(
        0.0,
        *(max((right - d) * math.exp(-e), 1 - d - math.exp(e) * (1 - right)) for e, d in curve),
    )
