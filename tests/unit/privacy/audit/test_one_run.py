"""Lower bounds on ε from guesses: the published numbers, closed cases, and coverage."""

import math

import numpy as np
import pytest

from fedlora.privacy.audit.one_run import (
    Guesses,
    best_guesses,
    epsilon_lower_bound,
    largest_lower_bound,
    numbers_of_guesses,
)


@pytest.mark.parametrize(
    ("canaries", "made", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
)
def test_the_bound_is_the_published_one(canaries, made, right, delta, published):
    """The paper's examples: appendix D, and the white-box experiment of section 7."""
    bound = epsilon_lower_bound(Guesses(made=made, right=right), canaries=canaries, delta=delta)
    assert bound == pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize("made", [10, 100, 3000])
def test_without_delta_right_guesses_show_what_they_must(made):
    """All right, with probability p each: p to the number of guesses is 5 % at ε = logit p."""
    p = 0.05 ** (1 / made)
    bound = epsilon_lower_bound(Guesses(made=made, right=made), canaries=made, delta=0)
    assert bound == pytest.approx(math.log(p / (1 - p)), abs=1e-3)


def test_half_right_shows_nothing():
    """As many as by chance are no sign of anything."""
    assert epsilon_lower_bound(Guesses(made=100, right=50), canaries=100, delta=1e-5) == 0
    assert largest_lower_bound([], canaries=100, delta=1e-5) == 0


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 0.0), (2.0, 0.0), (2.0, 1e-3)])
def test_the_bound_is_rarely_above_epsilon(epsilon, delta):
    """Of 2000 runs of randomised response, which is exactly (ε, δ), 5 % on average at most.

    With δ, an answer is the truth and known to be, first of all. Seeded; by chance alone the
    count would be above 140 with a probability of 5e-5.
    """
    draw, canaries, above = np.random.default_rng(0), 200, 0
    q = 1 / (1 + math.exp(-epsilon))
    known = {}
    for _ in range(2000):
        told = draw.random(canaries) < delta
        right = int((told | (draw.random(canaries) < q)).sum())
        if right not in known:
            guesses = Guesses(made=canaries, right=right)
            known[right] = epsilon_lower_bound(guesses, canaries=canaries, delta=delta)
        above += known[right] > epsilon
    assert above <= 140


def test_more_tries_share_one_confidence():
    """The best of two is less than it would be alone, and at least what the two allow."""
    one, other = Guesses(made=500, right=490), Guesses(made=100, right=60)
    both = largest_lower_bound([one, other], canaries=1000, delta=1e-6)
    assert both == epsilon_lower_bound(one, canaries=1000, delta=1e-6, confidence=0.975)
    assert both < epsilon_lower_bound(one, canaries=1000, delta=1e-6)


def test_numbers_of_guesses_leave_room_for_chance():
    """Of 20,000 games without noise, none has fewer canaries drawn than are guessed.

    That takes four standard deviations: 3e-5 a game, so half a game is expected; seeded.
    """
    draw, canaries = np.random.default_rng(1), 2000
    few, surely = numbers_of_guesses(canaries, sampling_rate=0.02, steps=96)
    assert few == canaries // 32
    chance = (1 - 0.98**96) / 2
    assert draw.binomial(canaries, chance, size=20_000).min() >= surely > 0.85 * chance * canaries


def test_too_few_canaries_leave_nothing_to_guess():
    """Or so few draws that chance is all."""
    assert numbers_of_guesses(10, sampling_rate=0.5, steps=1) == ()
    assert numbers_of_guesses(1000, sampling_rate=1e-4, steps=1) == ()
    assert numbers_of_guesses(10_000, sampling_rate=1.0, steps=1) == (312, 4800)


def test_guesses_are_of_the_highest_scores():
    """So many of them as each try has."""
    scores, included = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    tries = best_guesses(scores, included, (1, 2, 3))
    assert [(each.made, each.right) for each in tries] == [(1, 1), (2, 1), (3, 2)]
