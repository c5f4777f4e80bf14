"""Client-level privacy: what is clipped, and what the noised mean is."""

import math

import pytest
import torch

from fedlora.adapter import AdapterUpdate
from fedlora.errors import AdapterError, RunError
from fedlora.privacy.central import ClientSum, noised_mean
from fedlora.privacy.charge import Adjacency, Charge
from fedlora.privacy.mechanism import KeyStream
from tests.strategies import make_spec, make_update

SPEC = make_spec(rank=4, modules={"m": (300, 200)})
CLIP = 0.5


def charge(adjacency: Adjacency = "add-remove", *, noise: float = 3.0) -> Charge:
    return Charge(
        unit="client",
        adjacency=adjacency,
        sensitivity=CLIP if adjacency == "add-remove" else 2 * CLIP,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps=1,
        sampler="all",
    )


def total(*updates: AdapterUpdate) -> ClientSum:
    summed = ClientSum(SPEC, clip_norm=CLIP)
    for update in updates:
        summed.add(update)
    return summed


def values(summed: ClientSum) -> torch.Tensor:
    """Return the sum as it is before noise."""
    return summed.units * (CLIP / 2**30)


def noised(summed: ClientSum, *, expected: int, source: str, **of_charge) -> torch.Tensor:
    stream = KeyStream.reproducible(source)
    mean = noised_mean(
        summed, charge(**of_charge), expected=expected, num_examples=7, source=stream
    )
    assert (mean.spec, mean.num_examples) == (SPEC, 7)
    return mean.values


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e6, 1e30])
def test_an_update_is_clipped_to_its_direction(scale):
    """One that is short enough is kept, up to a unit; the update itself is left as it is."""
    update = make_update(SPEC)
    update.values.mul_(scale)
    before, length = update.values.clone(), float(update.values.double().norm())
    result = values(total(update))
    wanted = update.values.double() * min(1.0, CLIP / max(length, 1e-30))
    torch.testing.assert_close(result, wanted, rtol=2e-6, atol=CLIP / 2**30)
    assert torch.equal(update.values, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_counts_as_zero(bad):
    """A client can make its own share vanish, not that of others."""
    good, broken = make_update(SPEC), make_update(SPEC, seed=1)
    broken.values[3] = bad
    assert torch.equal(total(good, broken).units, total(good).units)


def test_the_sum_is_the_same_in_any_order():
    """Bit for bit: whole numbers are added without rounding."""
    updates = [make_update(SPEC, seed=seed) for seed in range(9)]
    assert torch.equal(total(*updates).units, total(*updates[::-1]).units)


def test_another_adapter_has_no_place_in_the_sum():
    """Its values would mean something else."""
    with pytest.raises(AdapterError, match="different specifications"):
        total(make_update(make_spec()))


def test_the_mean_is_over_the_expected_number():
    """A client that stayed away makes the result smaller, and the noise no larger."""
    updates = [make_update(SPEC, seed=seed) for seed in range(3)]
    with_them = noised(total(*updates), expected=4, source="x")
    alone = noised(total(), expected=4, source="x")
    torch.testing.assert_close(
        (with_them - alone).double(), values(total(*updates)) / 4, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(("adjacency", "deviation"), [("add-remove", 1.5), ("replace-one", 3.0)])
def test_the_noise_is_as_charged(adjacency, deviation):
    """Of z times the sensitivity, on the sum; a reproducible draw, within five deviations of its
    estimate. An empty cohort is noise alone.
    """
    seen = noised(total(), expected=4, source="y", adjacency=adjacency).double()
    assert float(seen.std()) * 4 == pytest.approx(deviation, rel=5 / (2 * SPEC.size) ** 0.5)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_noise_that_is_not_as_charged_releases_nothing(monkeypatch, share):
    """The aggregator measures what it added, as a site does."""
    gaussian = KeyStream.gaussian
    monkeypatch.setattr(KeyStream, "gaussian", lambda self, count: share * gaussian(self, count))
    with pytest.raises(RunError, match="self-test"):
        noised(total(make_update(SPEC)), expected=4, source="z")
