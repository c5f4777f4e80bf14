"""The privacy of Skellam noise: against the distributions themselves, and the normal limit."""

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest

from fedlora.errors import BudgetError
from fedlora.privacy.accounting.calibration import epsilon, least_charge, noise_multiplier
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.accounting.skellam import MOST_VALUES, divergence
from fedlora.privacy.charge import Charge


def charge(noise: float, *, granularity: int | None, steps: int = 1) -> Charge:
    return Charge(
        unit="client",
        adjacency="zero-out",
        sensitivity=0.5,
        noise_multiplier=noise,
        sampling_rate=1.0,
        steps=steps,
        sampler="all",
        granularity=granularity,
    )


def direct(order: float, *, shift: int, variance: float) -> float:
    """Return the divergence of one value, from its probabilities with 40 digits."""
    reach = int(12 * math.sqrt(variance) * math.sqrt(order) + order * shift + 60)
    with mpmath.workdps(40):
        of = [mpmath.besseli(k, variance) for k in range(reach + shift + 1)]
        terms = (
            of[abs(k - shift)] ** order * of[abs(k)] ** (1 - order)
            for k in range(-reach, reach + 1)
        )
        total = mpmath.fsum(terms) * mpmath.exp(-variance)
        return float(mpmath.log(total) / (order - 1))


def filtered(charges: list[Charge], *, delta: float) -> float:
    return RenyiFilter(epsilon=8, delta=delta).epsilon_of(charges)


@pytest.mark.parametrize("order", [1.5, 2, 3, 8, 20.5])
@pytest.mark.parametrize(
    ("shift", "variance"), [(1, 0.5), (1, 4.0), (2, 30.0), (5, 30.0), (7, 200.0)]
)
def test_it_is_an_upper_bound_of_the_divergence(order, shift, variance):
    """In one dimension, where it can be added up; Δ₁ is taken as the bound for any dimension."""
    [bound] = divergence(math.sqrt(variance) / shift, granularity=shift, orders=[order])
    true = direct(order, shift=shift, variance=variance)
    assert 0 < true <= bound
    if order == int(order) and variance >= 30:
        assert bound < 1.6 * true


@pytest.mark.parametrize("noise", [0.5, 3.0, 100.0])
def test_with_fine_steps_it_is_that_of_normal_noise(noise):
    """To a millionth from 2²⁰ steps on; with coarser ones it is never less."""
    orders = [2, 7, 64, 1024]
    normal = np.array(orders) / (2 * noise**2)
    fine = divergence(noise, granularity=2**20, orders=orders)
    np.testing.assert_allclose(fine, normal, rtol=1e-6 if noise >= 3 else 1e-3)
    assert (fine >= normal).all()
    last = math.inf
    for granularity in (1, 4, 2**8, 2**16):
        found = divergence(noise, granularity=granularity, orders=orders)
        assert (found <= last).all()
        last = found


def test_it_holds_for_the_most_values():
    """The L1 norm of a vector of Δ₂ is largest when it is spread over all values evenly."""
    granularity, noise = 2**17, 2.0  # Δ₂² is above √d · Δ₂
    variance = (noise * granularity) ** 2
    absolute = math.sqrt(MOST_VALUES) * granularity
    [bound] = divergence(noise, granularity=granularity, orders=[2])
    wanted = 2 / (2 * noise**2) + (3 * granularity**2 + 6 * absolute) / (4 * variance**2)
    assert bound == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("account", [epsilon, filtered])
def test_accountants_count_it(account):
    """As a little more than normal noise of the same size, and added to it."""
    skellam, normal = (
        charge(4.0, granularity=2**10, steps=6),
        charge(4.0, granularity=None, steps=6),
    )
    one, other = account([skellam], delta=1e-5), account([normal], delta=1e-5)
    assert other < one < 1.25 * other
    assert one < account([skellam, normal], delta=1e-5)
    twice = account([charge(4.0, granularity=2**10, steps=12)], delta=1e-5)
    assert account([skellam, skellam], delta=1e-5) == twice


@pytest.mark.parametrize("sampler", ["poisson", "all"])
def test_no_amplification_is_known_for_it(sampler):
    """A sampling rate below 1 is refused."""
    sampled = replace(charge(4.0, granularity=8), sampling_rate=0.5, sampler=sampler)
    with pytest.raises(BudgetError, match="skellam noise"):
        epsilon([replace(sampled, adjacency="add-remove")], delta=1e-5)


@pytest.mark.parametrize(("budget", "rounds"), [(0.3, 100), (3.0, 20), (8.0, 1), (40.0, 50)])
def test_calibrated_noise_is_the_least(budget, rounds):
    """Within 0.1 %, also where the granularity moves with it; close to that of normal noise."""

    def of(noise: float) -> Charge:
        return charge(noise, granularity=int(2**22 / noise), steps=rounds)

    found = least_charge(of, epsilon=budget, delta=1e-5)
    assert found == of(found.noise_multiplier)
    assert epsilon([found], delta=1e-5) <= budget
    assert epsilon([of(found.noise_multiplier / 1.001)], delta=1e-5) > budget
    normal = noise_multiplier(epsilon=budget, delta=1e-5, sampling_rate=1.0, steps=rounds)
    assert 1 < found.noise_multiplier / normal < 1.2


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": 51.0}, {"delta": 0.1}])
def test_a_budget_out_of_range_is_refused(wrong):
    """As for normal noise."""
    with pytest.raises(BudgetError, match="must be above 0"):
        least_charge(lambda z: charge(z, granularity=8), **{"epsilon": 1.0, "delta": 1e-5} | wrong)


def test_a_budget_that_no_noise_keeps_is_refused():
    """It would take a multiplier above 8192."""
    with pytest.raises(BudgetError, match="above 8192"):
        least_charge(lambda z: charge(z, granularity=2**10, steps=10**9), epsilon=1e-2, delta=1e-6)
