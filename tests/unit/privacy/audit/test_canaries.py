"""Canaries through the real DP-SGD of a tiny model."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from fedlora.errors import RunError
from fedlora.privacy.accounting.calibration import epsilon
from fedlora.privacy.audit.canaries import Canaries, CanaryDpSgd
from fedlora.privacy.audit.curve import contradicted, curve_of
from fedlora.privacy.audit.one_run import best_guesses, numbers_of_guesses
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.clipping import ClippedSum
from fedlora.privacy.mechanism import KeyStream
from fedlora.training.local import train_local
from tests.tiny_models import random_tokens, tiny_base, tiny_recipe

PROMISED = Charge.of_steps(8, sensitivity=0.5, noise_multiplier=0.8, sampling_rate=0.2)
COUNT = 2000


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a tiny Llama in float32."""
    return tiny_base(tmp_path_factory.mktemp("llama"))


def play(base, charge, *, seed="0", count=COUNT):
    """Train for the charged steps with canaries among five records."""
    source = KeyStream.reproducible(seed)
    canaries = Canaries(count, promised=PROMISED, source=source)
    among = canaries.among(KeyStream.reproducible(f"{seed}/steps"))
    mechanism = CanaryDpSgd(canaries, charge, expected_examples=1.0, source=among)
    mechanism.self_test()
    steps = (
        [random_tokens(*[9] * len(drawn))] if drawn else []
        for drawn in (among.poisson_sample(5, charge.sampling_rate) for _ in range(charge.steps))
    )
    train_local(
        base,
        base.adapter(),
        steps,
        gradient=mechanism.gradient,
        part=base.spec.part("B"),
        recipe=tiny_recipe(learning_rate=1e-3),
        first_step=0,
        total_steps=charge.steps,
        seed="secret",
    )
    return canaries


def caught(canaries):
    """Return whether the game contradicts what was promised, at 99 %."""
    numbers = numbers_of_guesses(COUNT, sampling_rate=0.2, steps=PROMISED.steps)
    tries = best_guesses(canaries.scores, canaries.included, numbers)
    curve = curve_of(lambda delta: epsilon([PROMISED], delta=delta))
    return contradicted(curve, tries, canaries=COUNT, confidence=0.99)


def test_noise_as_charged_is_not_caught(base):
    """The scores are spread as the promised mechanism's are, to four standard errors each."""
    canaries = play(base, PROMISED)
    assert not caught(canaries)
    draw, q, z = np.random.default_rng(0), PROMISED.sampling_rate, PROMISED.noise_multiplier
    for included in (True, False):
        seen = z * draw.standard_normal((50_000, PROMISED.steps))
        seen += included & (draw.random(seen.shape) < q)
        expected = np.log(1 - q + q * np.exp((seen - 0.5) / z**2)).sum(1)
        scores = canaries.scores[canaries.included == included]
        error = 4 * expected.std() / math.sqrt(len(scores))
        assert scores.mean() == pytest.approx(expected.mean(), abs=error)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_less_noise_than_promised_is_caught(base, share):
    """Though the site's own test passes: it holds the noise against the charge it was given."""
    less = replace(PROMISED, noise_multiplier=share * PROMISED.noise_multiplier)
    assert caught(play(base, less))


def test_without_noise_all_that_were_drawn_show(base):
    """And none else: those that are out, and those that were never drawn, have one score."""
    canaries = play(base, replace(PROMISED, noise_multiplier=0.0), seed="1")
    lowest = canaries.scores.min()
    above = canaries.scores > lowest + 1e-3
    assert not (above & ~canaries.included).any()
    share = above.sum() / canaries.included.sum()
    assert share == pytest.approx(1 - 0.8**8, abs=0.05)  # over four standard deviations


def test_clipping_that_fails_is_caught(base, monkeypatch):
    """A record that weighs four times what it may stands out of noise that is as charged."""
    add = ClippedSum.add

    def loose(self, gradients):
        for _ in range(4):
            add(self, [gradient.clone() for gradient in gradients])

    monkeypatch.setattr(ClippedSum, "add", loose)
    assert caught(play(base, PROMISED, seed="2"))


def test_the_other_records_are_drawn_and_summed_as_ever():
    """The gradient is that of the records, the canaries apart; the sum counts both."""
    canaries = Canaries(4, promised=PROMISED, source=KeyStream.reproducible("coins"))
    canaries.included[:] = [True, False, True, True]
    total = ClippedSum([3, 5], clip_norm=0.5)
    total.add([torch.full((1, 3), 0.1), torch.full((1, 5), 0.1)])
    canaries.draw([0, 2])
    for gradients in canaries.gradients(total):
        total.add(gradients)
    expected = torch.full((8,), 0.1, dtype=torch.float64)
    expected[[0, 6]] += 0.5
    torch.testing.assert_close(total.values, expected, rtol=1e-6, atol=1e-7)
    assert total.examples == 3


def test_canaries_and_records_are_drawn_alike():
    """By one draw, whose places behind the records are the canaries' that are in."""
    canaries = Canaries(1000, promised=PROMISED, source=KeyStream.reproducible("a"))
    present = int(canaries.included.sum())
    assert 400 < present < 600
    drawn = canaries.among(KeyStream.reproducible("b")).poisson_sample(50, 0.3)
    whole = KeyStream.reproducible("b").poisson_sample(50 + present, 0.3)
    assert drawn == [place for place in whole if place < 50]
    sizes = [len(some[0]) for some in canaries.gradients(ClippedSum([2000], clip_norm=1.0))]
    assert sum(sizes) == len(whole) - len(drawn)


def test_what_cannot_be_played_is_refused():
    """A step without a draw, and more canaries than places."""
    canaries = Canaries(9, promised=PROMISED, source=KeyStream.reproducible("c"))
    with pytest.raises(RunError, match="without drawing"):
        next(canaries.gradients(ClippedSum([20], clip_norm=1.0)))
    canaries.draw([])
    with pytest.raises(RunError, match="9 canaries need as many"):
        next(canaries.gradients(ClippedSum([8], clip_norm=1.0)))


def test_coins_are_fair_and_secret():
    """Two secure games have other coins."""
    make = partial(Canaries, 256, promised=PROMISED)
    first, second = (make(source=KeyStream.secure()).included for _ in range(2))
    assert not np.array_equal(first, second)
