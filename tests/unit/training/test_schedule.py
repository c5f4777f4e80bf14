"""Learning rates over a whole training."""

import pytest

from fedlora.training.schedule import learning_rate_factor


def factors(**keys):
    return [learning_rate_factor(step, total_steps=10, **keys) for step in range(10)]


def test_warm_up_rises_linearly_to_one_and_its_first_step_already_trains():
    """With four of ten steps of warm-up the factors are quarters."""
    rates = factors(warmup_ratio=0.4, scheduler="constant")
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]


def test_linear_falls_in_equal_steps_towards_zero():
    """Without warm-up step k of ten has the factor 1 - k / 10."""
    rates = factors(warmup_ratio=0, scheduler="linear")
    assert rates == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_cosine_is_one_half_in_the_middle_of_what_follows_the_warm_up():
    """Two of ten steps warm up; the fall begins at one at step 2 and crosses one half at step 6."""
    rates = factors(warmup_ratio=0.2, scheduler="cosine")
    assert rates[:3] == [0.5, 1, 1]
    assert rates[6] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] > 0
