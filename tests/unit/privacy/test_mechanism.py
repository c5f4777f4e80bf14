"""The random bits of differential privacy: what is drawn from them, and that nothing repeats."""

import os

import numpy as np
import pytest
import torch
from scipy import stats

from fedlora.privacy.mechanism import KeyStream

MANY = 200_000


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return KeyStream.reproducible("noise").gaussian(MANY).numpy()


def test_noise_is_standard_normal(noise):
    """By the Kolmogorov-Smirnov test and the first four moments, within five deviations."""
    assert stats.kstest(noise, "norm").pvalue > 1e-4
    moments = [np.mean(noise**power) for power in (1, 2, 3, 4)]
    deviations = np.sqrt(np.array([1, 2, 15, 96]) / MANY)
    assert np.all(np.abs(np.array(moments) - [0, 1, 0, 3]) < 5 * deviations)


def test_draws_are_independent(noise):
    """Of the neighbour, and of the place that shares uniform numbers with it in a chunk."""
    chunk = noise[: 2**15]
    for other in (np.roll(chunk, 1), chunk[::-1], noise[2**15 : 2**16]):
        assert abs(np.mean(chunk * other)) < 5 / np.sqrt(len(chunk)) * np.sqrt(2)
        assert abs(np.corrcoef(chunk**2, other**2)[0, 1]) < 5 / np.sqrt(len(chunk)) * np.sqrt(2)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2**15 - 1, 2**15 + 1])
def test_any_number_of_values(count):
    """Also none, an odd one, and one more than a chunk; all are finite."""
    values = KeyStream.secure().gaussian(count)
    assert values.shape == (count,)
    assert values.dtype == torch.float64
    assert values.isfinite().all()


def test_secure_streams_have_nothing_in_common():
    """Each has a key of its own, and never draws the same twice."""
    one, other = KeyStream.secure(), KeyStream.secure()
    draws = [stream.gaussian(4) for stream in (one, one, other)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3


def test_a_reproducible_stream_repeats_itself():
    """By its seed alone."""
    draws = [KeyStream.reproducible(seed).gaussian(8) for seed in ("a", "a", "b")]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("stream", [KeyStream.secure(), KeyStream.reproducible("x")])
def test_a_forked_process_draws_for_itself(stream):
    """What a child draws is neither what its parent draws next nor what another child draws."""
    drawn = []
    for _ in range(2):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, bytes(stream.bits(2)))
            os._exit(0)
        drawn.append(os.read(reader, 16))
        os.wait()
        os.close(reader)
        os.close(writer)
    drawn.append(bytes(stream.bits(2)))
    assert len(set(drawn)) == 3


def test_each_unit_is_drawn_on_its_own():
    """As often as the rate says, within five deviations; another sample each time."""
    stream, rate = KeyStream.reproducible("poisson"), 0.03
    samples = [stream.poisson_sample(1000, rate) for _ in range(200)]
    sizes = np.array([len(sample) for sample in samples])
    assert abs(sizes.mean() - 30) < 5 * np.sqrt(30 * 0.97 / 200)
    assert 0.6 < sizes.var() / (30 * 0.97) < 1.6  # a sample of fixed size has none
    times = np.bincount(np.concatenate(samples), minlength=1000)
    assert abs(times.var() / (200 * rate * (1 - rate)) - 1) < 5 * np.sqrt(2 / 1000)
    assert all(sample == sorted(set(sample)) for sample in samples)


@pytest.mark.parametrize(("rate", "expected"), [(1.0, [0, 1, 2]), (0.0, []), (2.0**-70, [])])
def test_all_or_none(rate, expected):
    """At the ends nothing is left to chance."""
    assert KeyStream.secure().poisson_sample(3, rate) == expected
