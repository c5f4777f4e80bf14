"""Client-level privacy: what is clipped, and what the noised mean is."""

import pytest
import torch

from fedlora.privacy.central import clipped, noised_mean
from fedlora.privacy.charge import Charge
from fedlora.privacy.mechanism import KeyStream
from tests.strategies import make_spec, make_update

SPEC = make_spec(rank=4, modules={"m": (300, 200)})
CHARGE = Charge(
    unit="client",
    adjacency="add-remove",
    sensitivity=0.5,
    noise_multiplier=3.0,
    sampling_rate=1.0,
    steps=1,
    sampler="all",
)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e30])
def test_no_update_is_longer_than_the_clip_norm(scale):
    """After rounding too; one that is short enough is left as it is."""
    update = make_update(SPEC)
    update.values.mul_(scale)
    result = clipped(update, norm=0.5)
    length = float(result.values.double().norm())
    assert length <= 0.5
    if scale == 1e-6:
        assert result is update
    else:
        assert length == pytest.approx(0.5, rel=1e-5)
        torch.testing.assert_close(
            result.values / length, update.values / float(update.values.double().norm())
        )


def test_the_sum_is_over_the_expected_number():
    """A client that stayed away makes the result smaller, and the noise no larger."""
    mean = make_update(SPEC)
    without_noise = [
        noised_mean(mean, CHARGE, folded=3, expected=4, source=KeyStream.reproducible("x")).values
        - noised_mean(mean, CHARGE, folded=0, expected=4, source=KeyStream.reproducible("x")).values
    ]
    torch.testing.assert_close(without_noise[0], mean.values * 0.75, rtol=1e-4, atol=1e-5)


def test_the_noise_is_as_charged():
    """Of z times the sensitivity, on the sum; within five deviations of its estimate."""
    mean = make_update(SPEC)
    mean.values.zero_()
    noised = noised_mean(mean, CHARGE, folded=4, expected=4, source=KeyStream.reproducible("y"))
    deviation = float(noised.values.double().std()) * 4
    assert deviation == pytest.approx(1.5, rel=5 / (2 * SPEC.size) ** 0.5)
