"""Clipped sums of gradients."""

import math

import pytest
import torch

from fedlora.errors import RunError
from fedlora.privacy.dp_sgd import clipping
from fedlora.privacy.dp_sgd.clipping import ClippedSum
from tests.gradient_oracles import clipped_sum

SHAPES = [(2, 30), (40, 2)]
SIZES = [60, 80]


@pytest.fixture
def gradients():
    """Return random gradients of five examples for two tensors, of norms around 12."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, *shape, generator=generator) for shape in SHAPES]


def flat(gradients):
    return list(torch.cat([each.flatten(1) for each in gradients], dim=1))


def summed(gradients, clip_norm):
    total = ClippedSum(SIZES, clip_norm=clip_norm)
    total.add([each.clone() for each in gradients])
    return total


@pytest.mark.parametrize("clip_norm", [1e-3, 11.8, 1e3])
def test_norms_are_joint_over_all_tensors(gradients, clip_norm):
    """All, some or none are clipped, to the norm of the whole vector."""
    total = summed(gradients, clip_norm)
    expected = clipped_sum(flat(gradients), clip_norm)
    assert float((total.values - expected).norm()) < 1e-8 * float(expected.norm())
    norms = [float(each.double().norm()) for each in flat(gradients)]
    assert total.unclipped == sum(norm <= clip_norm for norm in norms)


def test_calls_add_up(gradients):
    """One example after another makes the same sum and the same counts."""
    one_by_one = ClippedSum(SIZES, clip_norm=11.8)
    for row in range(5):
        one_by_one.add([each[row : row + 1].clone() for each in gradients])
    whole = summed(gradients, 11.8)
    torch.testing.assert_close(one_by_one.values, whole.values)
    assert (one_by_one.examples, one_by_one.unclipped) == (whole.examples, whole.unclipped)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", [0, 1])
def test_an_example_that_is_not_finite_counts_as_zero(gradients, value, tensor):
    """One such value anywhere takes out its example, and nothing else."""
    zeroed = [each.clone() for each in gradients]
    for each in zeroed:
        each[3] = 0
    gradients[tensor][3, 1, 0] = value
    came, expected = summed(gradients, 1.0), summed(zeroed, 1.0)
    assert torch.equal(came.values, expected.values)
    assert (came.examples, came.unclipped) == (expected.examples, expected.unclipped)


@pytest.mark.parametrize("scale", [1e-42, 1e-25, 1e25, 1e37])
def test_gradients_of_any_scale_are_clipped_right(gradients, scale):
    """Squares that neither float32 nor its exponents hold do not end up above the bound."""
    scaled = [each * scale for each in gradients]
    total = summed(scaled, 2.0)
    torch.testing.assert_close(total.values, clipped_sum(flat(scaled), 2.0), rtol=1e-8, atol=0)


def test_a_clipped_norm_above_the_bound_stops_the_step(gradients, monkeypatch):
    """Whatever goes wrong in clipping, a look at single examples finds it."""

    def of_the_first_tensor(tensors):
        return tensors[0].flatten(1).double().norm(dim=1)

    monkeypatch.setattr(clipping, "_joint_norms", of_the_first_tensor)
    with pytest.raises(RunError, match="larger than clip_norm"):
        summed(gradients, 1.0)


def test_the_look_at_single_examples_reaches_all_of_them(gradients, monkeypatch):
    """An error that spares the first examples of a batch is found within as many calls."""

    def wrong_for_the_last(tensors):
        norms = torch.cat([each.flatten(1) for each in tensors], dim=1).double().norm(dim=1)
        norms[-1] = 1
        return norms

    monkeypatch.setattr(clipping, "_joint_norms", wrong_for_the_last)
    total = ClippedSum(SIZES, clip_norm=1.0)
    for _ in range(4):
        total.add(gradients)
    with pytest.raises(RunError, match="larger than clip_norm"):
        total.add(gradients)
