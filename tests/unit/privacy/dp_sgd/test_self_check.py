"""What a private step checks of itself."""

import math

import pytest
import torch

from fedlora.errors import RunError
from fedlora.privacy.dp_sgd.self_check import require_moved, require_noise, require_within


def noise(*sizes, deviation=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    return [deviation * each for each in draws]


def test_calibrated_noise_passes():
    """For adapters of one value and of a million, 500 times; by chance once in 10¹²."""
    for seed in range(500):
        require_noise(noise(1, 2, 64, 5000, seed=seed), deviation=3.0)
    require_noise(noise(10**6, 3), deviation=3.0)


@pytest.mark.parametrize("factor", [0.98, 1.02, 0.0, math.nan, math.inf])
def test_a_wrong_deviation_is_found(factor):
    """Two per cent of a million values are enough, in either direction."""
    with pytest.raises(RunError, match="noise in a step does not have"):
        require_noise(noise(10**6, deviation=3.0 * factor), deviation=3.0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_tensor_without_noise_is_found_among_others(place):
    """It is too small to be seen in the sum over all tensors."""
    added = noise(300, 10**6, 300)
    added[place].zero_()
    with pytest.raises(RunError, match="noise in a step does not have"):
        require_noise(added, deviation=3.0)


def test_noise_that_is_too_small_everywhere_is_found_although_no_tensor_shows_it():
    """Many small tensors have a large sum."""
    added = noise(*[100] * 1000, deviation=2.8)
    with pytest.raises(RunError, match="noise in a step does not have"):
        require_noise(added, deviation=3.0)


@pytest.mark.parametrize("norm", [1.0000001, math.nan, math.inf])
def test_a_norm_above_the_bound_is_found(norm):
    """Also one that is no number; the bound itself is allowed."""
    require_within(1.0, 1.0)
    with pytest.raises(RunError, match="larger than clip_norm"):
        require_within(norm, 1.0)


def test_an_adapter_that_moved_passes():
    """One tensor is enough: others may have a learning rate below their last digit."""
    after = [torch.ones(3), torch.zeros(2)]
    before = [torch.zeros(3), torch.zeros(2)]
    require_moved(before, after, [each.view(-1) for each in after])


def test_an_adapter_that_stood_still_is_found():
    """Nothing changed although steps were taken."""
    after = [torch.ones(3), torch.zeros(2)]
    with pytest.raises(RunError, match="has not moved"):
        require_moved([each.clone() for each in after], after, after)


def test_an_optimiser_that_steps_a_copy_is_found():
    """What it steps must be the model's own memory."""
    after = [torch.ones(3), torch.zeros(2)]
    with pytest.raises(RunError, match="has not moved"):
        require_moved([torch.zeros(3), torch.zeros(2)], after, [after[0], after[1].clone()])


@pytest.mark.parametrize("number", ["3.0", "1.25"])
def test_messages_hold_no_number_of_the_run(number):
    """They may be read by whoever reads the site's errors."""
    with pytest.raises(RunError) as noisy:
        require_noise([torch.zeros(1000, dtype=torch.float64)], deviation=3.0)
    with pytest.raises(RunError) as large:
        require_within(1.25, 1.0)
    assert number not in f"{noisy.value} {large.value}"
