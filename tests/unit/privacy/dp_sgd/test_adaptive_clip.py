"""Clipping at a quantile of the norms."""

import math

import pytest
import torch

from fedlora.errors import RunError
from fedlora.privacy.dp_sgd.adaptive_clip import AdaptiveClip


def adaptive(**keys):
    return AdaptiveClip(**({"quantile": 0.5, "learning_rate": 0.2, "count_deviation": 5.0} | keys))


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
def test_the_two_noises_together_spend_what_was_charged(z):
    """Both queries as one vector, each scaled by its deviation, have a sensitivity of 1/z."""
    vector = adaptive(count_deviation=3.0).vector_multiplier(z)
    assert math.hypot(1 / vector, (1 / 2) / 3.0) == pytest.approx(1 / z)


def test_the_split_is_that_of_the_paper():
    """For z = 1 and a deviation of 5, the sum gets a multiplier of (1 - 1/100)^(-1/2)."""
    assert adaptive().vector_multiplier(1.0) == pytest.approx(1.0050378152592121, rel=1e-12)
    assert adaptive().vector_multiplier(0.0) == 0


@pytest.mark.parametrize("z", [10.0, 10.1, math.inf, math.nan])
def test_a_count_that_spends_all_is_refused(z):
    """Nothing would be left for the sum."""
    with pytest.raises(RunError, match="must be above half of the noise multiplier"):
        adaptive().vector_multiplier(z)


@pytest.mark.parametrize(
    "keys",
    [{"quantile": 0.0}, {"quantile": 1.0}, {"learning_rate": 0.0}, {"count_deviation": math.nan}],
)
def test_numbers_out_of_range_are_refused(keys):
    """The error names all three."""
    with pytest.raises(RunError, match="quantile between 0 and 1"):
        adaptive(**keys)


def test_one_step_of_the_bound_is_that_of_the_paper():
    """40 of 60 unclipped where 50 are expected: a share of 1/2 + 10/50, noise apart."""
    keys = {"unclipped": 40, "examples": 60, "expected": 50}
    still = adaptive().next_bound(2.0, **keys, noise=0.0)
    noisy = adaptive().next_bound(2.0, **keys, noise=1.5)
    assert still == pytest.approx(2 * math.exp(-0.2 * (0.7 - 0.5)))
    assert noisy == pytest.approx(2 * math.exp(-0.2 * (0.7 + 7.5 / 50 - 0.5)))


def test_one_example_changes_the_noised_count_by_a_half():
    """Clipped or not; that is the sensitivity that the split of the noise counts on."""

    def centred(unclipped, examples):
        bound = adaptive(learning_rate=1.0).next_bound(
            1.0, unclipped=unclipped, examples=examples, expected=10, noise=0.0
        )
        return -10 * math.log(bound)

    for unclipped in (4, 5):
        assert abs(centred(unclipped, 9) - centred(4, 8)) == pytest.approx(1 / 2)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_bound_settles_at_the_quantile(quantile):
    """From far below and far above, with noise, to within a few per cent of the share."""
    generator = torch.Generator().manual_seed(0)
    rule = adaptive(quantile=quantile, count_deviation=10.0)
    for bound in (0.1, 20.0):
        shares = []
        for _ in range(400):
            norms = torch.rand(200, generator=generator) + 1
            unclipped = int((norms <= bound).sum())
            shares.append(unclipped / 200)
            bound = rule.next_bound(  # noqa: PLW2901 - the start, then each step's
                bound,
                unclipped=unclipped,
                examples=200,
                expected=200,
                noise=float(torch.randn((), generator=generator)),
            )
        assert sum(shares[-200:]) / 200 == pytest.approx(quantile, abs=0.03)
