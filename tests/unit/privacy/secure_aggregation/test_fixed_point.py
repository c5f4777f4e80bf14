"""Updates as whole numbers modulo 2³²: no wrap at the bounds, no more than the norm, the mean."""

import math

import mpmath
import numpy as np
import pytest
import torch

from fedlora.errors import SecureSumError
from fedlora.privacy.mechanism import KeyStream
from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint, Noise, skellam_tail

SIZE = 2 * 2**16 + 5
CLIP = 0.75


def update(seed: int, *, length: float) -> torch.Tensor:
    values = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    return values * (length / values.norm())


def exact_norm(vector: np.ndarray) -> float:
    """Return the norm of a vector's values, squared and summed as Python's whole numbers."""
    return math.sqrt(sum(int(v) ** 2 for v in vector[:-1].view(np.int32)))


def clipped(values: torch.Tensor) -> torch.Tensor:
    bound = CLIP * (1 - 1e-6)
    return values.double() * (bound / max(float(values.double().norm()), bound))


def total_of(vectors: list[np.ndarray]) -> np.ndarray:
    return np.sum(vectors, axis=0, dtype=np.uint32)


@pytest.mark.parametrize("clients", [3, 8, 100])
def test_the_mean_is_the_weighted_mean_to_the_stated_bound(clients):
    """Of updates within the clip norm and beyond it, with unequal weights."""
    fixed = FixedPoint(clients=clients, clip_norm=CLIP, weights_up_to=64)
    updates = [update(i, length=0.3 * (i % 4)) for i in range(clients)]
    weights = [1 + 7 * i % 64 for i in range(clients)]
    vectors = [fixed.encode(u, weight=w) for u, w in zip(updates, weights, strict=True)]
    mean, weight = fixed.decode(total_of(vectors))
    assert weight == sum(weights)
    wanted = sum(w * clipped(u) for w, u in zip(weights, updates, strict=True)) / weight
    off = (mean.double() - wanted).abs() - wanted.abs() * 2.0**-23
    assert 0 < float(off.max()) <= fixed.error_bound(weight) < CLIP * 1e-3


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("clients", [3, 7, 100, 1000])
def test_the_largest_values_of_all_clients_do_not_wrap(clients, sign):
    """All of each client's norm in one value, of the same sign: the most that a sum can hold."""
    fixed = FixedPoint(clients=clients, clip_norm=CLIP)
    values = torch.zeros(4)
    values[2] = sign * 1e30
    one = fixed.encode(values, weight=1)
    mean, weight = fixed.decode(total_of([one] * clients))
    assert weight == clients
    assert float(mean[2]) == pytest.approx(sign * CLIP, rel=2e-6)
    assert clients * fixed.steps < 2**31 <= clients * (fixed.steps + 1)


def test_one_step_more_would_wrap():
    """The bound is the least that holds: with one client, its largest value is 2³¹ - 1."""
    fixed = FixedPoint(clients=1, clip_norm=CLIP)
    assert fixed.steps == 2**31 - 1
    assert int(np.uint32(fixed.steps + 1).view(np.int32)) < 0


@pytest.mark.parametrize(("weight", "length"), [(1, 1e20), (50, 0.75), (64, 1e-3), (64, 1e20)])
def test_no_vector_is_longer_than_its_part_of_the_clip_norm(weight, length):
    """Exactly: what one client adds is what the sum's sensitivity says."""
    fixed = FixedPoint(clients=8, clip_norm=CLIP, weights_up_to=64)
    vector = fixed.encode(update(3, length=length), weight=weight)
    assert vector.dtype == np.uint32
    assert vector[-1] == weight
    part = fixed.steps * weight / 64
    assert exact_norm(vector) <= part
    assert exact_norm(vector) == pytest.approx(
        part * min(1, length / CLIP), rel=2e-6, abs=SIZE**0.5
    )


def test_an_update_and_a_sum_are_left_as_they_are():
    """They belong to others."""
    fixed, values = FixedPoint(clients=3, clip_norm=CLIP), update(1, length=2.0)
    kept = values.clone()
    vector = fixed.encode(values, weight=1)
    before = vector.copy()
    fixed.decode(vector)
    assert torch.equal(values, kept)
    assert np.array_equal(vector, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(bad):
    """Nobody could take it out of the sum again."""
    values = update(1, length=1.0)
    values[SIZE - 1] = bad
    with pytest.raises(SecureSumError, match="not finite"):
        FixedPoint(clients=3, clip_norm=CLIP).encode(values, weight=1)


@pytest.mark.parametrize("weight", [0, -1, 65])
def test_a_weight_out_of_its_range_is_refused(weight):
    """One above it would let a client's vector be longer than the clip norm."""
    with pytest.raises(SecureSumError, match="from 1 to 64"):
        FixedPoint(clients=3, clip_norm=CLIP, weights_up_to=64).encode(torch.ones(3), weight=weight)


@pytest.mark.parametrize("weight", [0, 3 * 64 + 1, 2**32 - 1])
def test_a_sum_of_an_impossible_weight_is_refused(weight):
    """It is no sum of the clients' vectors."""
    total = np.zeros(4, np.uint32)
    total[-1] = weight
    with pytest.raises(SecureSumError, match="total weight"):
        FixedPoint(clients=3, clip_norm=CLIP, weights_up_to=64).decode(total)


def test_weights_that_would_wrap_are_refused():
    """Their sum is read as one number of 32 bits."""
    FixedPoint(clients=3, clip_norm=CLIP, weights_up_to=(2**32 - 1) // 3)
    with pytest.raises(SecureSumError, match="add up"):
        FixedPoint(clients=3, clip_norm=CLIP, weights_up_to=(2**32 - 1) // 3 + 1)


def test_with_noise_the_steps_are_the_most_that_keep_the_wrap_probability():
    """Of all shares that may come, over all values; one step more, and it is above 2⁻⁴⁰."""
    noise = Noise(deviation=5.0, shares=4)
    fixed = FixedPoint(clients=8, clip_norm=CLIP, noise=noise)
    assert 0 < fixed.wrap_probability <= 2.0**-40
    assert fixed._wrap_probability(fixed.steps + 1) > 2.0**-40
    room, variance = 2**31 - 8 * fixed.steps, 2 * 8 * noise.rate(fixed.steps)
    assert variance == pytest.approx(2 * (5.0 * fixed.steps) ** 2, rel=1e-9)
    normal = 2 * 2**31 * mpmath.ncdf(-room / mpmath.sqrt(variance))
    assert normal < fixed.wrap_probability < 40 * normal


@pytest.mark.parametrize(("variance", "least"), [(2, 4), (20, 30), (200, 90)])
def test_the_tail_bound_is_one(variance, least):
    """Above the tail of the Skellam distribution itself, and not far above."""
    tail = mpmath.nsum(
        lambda k: mpmath.exp(-variance) * mpmath.besseli(k, variance), [least, least + 200]
    )
    assert tail <= skellam_tail(least, variance=variance) < 20 * tail


def test_with_noise_the_mean_is_over_all_clients():
    """However many came: a client's absence must not make another's update larger."""
    noise = Noise(deviation=1.0, shares=2)
    fixed = FixedPoint(clients=4, clip_norm=CLIP, noise=noise)
    vector = np.zeros(11, np.uint32)
    vector[0], vector[-1] = fixed.steps, 1
    mean, weight = fixed.decode(vector)
    assert weight == 1
    assert float(mean[0]) == pytest.approx(CLIP / 4, rel=1e-6)


def test_noise_that_leaves_no_room_is_refused():
    """There is no step with which it fits."""
    with pytest.raises(SecureSumError, match="32 bits"):
        FixedPoint(clients=3, clip_norm=CLIP, noise=Noise(deviation=1e9, shares=2))


def test_the_shares_of_the_noise_add_up_to_what_was_asked():
    """From the threshold on: of four shares, the mean of four clients has the deviation wanted."""
    fixed = FixedPoint(clients=4, clip_norm=CLIP, noise=Noise(deviation=3.0, shares=4))
    values = update(1, length=CLIP / 2)
    streams = [KeyStream.reproducible(f"{client}") for client in range(4)]
    total = total_of([fixed.encode(values, weight=1, bits=s.bits) for s in streams])
    noise = fixed.decode(total)[0].double() - values.double()
    assert float(noise.std()) == pytest.approx(3.0 * CLIP / 4, rel=5 / (2 * SIZE) ** 0.5)
    assert abs(float(noise.mean())) < 4 * 3.0 * CLIP / 4 / SIZE**0.5
