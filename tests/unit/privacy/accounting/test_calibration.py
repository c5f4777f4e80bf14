"""What charges cost and how much noise a budget takes, against Google's and exact accountants."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
)
from scipy import optimize
from scipy.stats import norm

from fedlora.errors import BudgetError
from fedlora.privacy.accounting import calibration, privacy_loss
from fedlora.privacy.accounting.calibration import (
    epsilon,
    noise_multiplier,
    signal_to_noise,
)
from fedlora.privacy.accounting.renyi import Gaussian
from fedlora.privacy.charge import Charge

STEP = Charge.of_steps(1, sensitivity=0.5, noise_multiplier=1.0, sampling_rate=0.02)
EXCHANGE = replace(STEP, adjacency="replace-one", sampling_rate=1.0, sampler="all")


def charge(z: float, q: float, steps: int) -> Charge:
    return replace(STEP, noise_multiplier=z, sampling_rate=q, steps=steps)


def of_google(
    *charges: Charge, pessimistic: bool, interval: float = 1e-4
) -> PrivacyLossDistribution:
    """Return the composition by privacy buckets or, if pessimistic, by connected dots."""
    parts = [
        from_gaussian_mechanism(
            c.noise_multiplier,
            sampling_prob=c.sampling_rate,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
            value_discretization_interval=interval,
        ).self_compose(c.steps)
        for c in charges
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return total


def exact(*charges: Charge, delta: float) -> float:
    """Return the ε of Gaussian mechanisms on all units (Balle and Wang 2018, theorem 8)."""
    mu = math.sqrt(sum(c.steps / c.noise_multiplier**2 for c in charges))

    def excess(eps: float) -> float:
        upper, lower = norm.logcdf(mu / 2 - eps / mu), eps + norm.logcdf(-mu / 2 - eps / mu)
        return upper + np.log1p(-np.exp(lower - upper)) - math.log(delta)

    return optimize.brentq(excess, 1e-9, 100 + mu**2, xtol=1e-12)


@pytest.mark.parametrize(
    ("charges", "delta"),
    [
        ([charge(1.0, 0.02, 300)], 1e-5),
        ([charge(0.8, 0.05, 1000)], 1e-6),
        ([charge(0.45, 0.001, 100)], 1e-6),
        ([charge(20.0, 0.3, 10)], 1e-4),
        ([charge(0.4677, 0.001061, 4)], 1.3e-4),
        ([charge(1.0, 1.0, 1)], 1e-9),
        ([charge(1.0, 0.02, 300), charge(4.0, 1.0, 4), charge(2.0, 0.2, 20)], 1e-5),
    ],
)
def test_epsilon_agrees_with_google_s_accountant(charges, delta):
    """At least its optimistic estimate, and at most 1 % above its pessimistic one."""
    found = epsilon(charges, delta=delta)
    assert of_google(*charges, pessimistic=False).get_epsilon_for_delta(delta) <= found
    assert found <= 1.01 * of_google(*charges, pessimistic=True).get_epsilon_for_delta(delta)


@pytest.mark.slow
def test_epsilon_agrees_with_google_s_accountant_at_random():
    """Fifty mechanisms, ε from 0.1 to 20: at most 10 % above the pessimistic estimate."""
    rng = np.random.default_rng(0)
    compared = 0
    while compared < 50:
        z, steps = math.exp(rng.uniform(-1.2, 4)), int(math.exp(rng.uniform(0, 10)))
        q, delta = min(1.0, math.exp(rng.uniform(-9, 0.3))), 10 ** rng.uniform(-8, -3)
        drawn = charge(z, q, steps)
        if not 0.1 < privacy_loss.bound((Gaussian(z, q, steps),), delta=delta) < 60:
            continue  # saves Google's accountant the time
        most = of_google(drawn, pessimistic=True).get_epsilon_for_delta(delta)
        if not 0.1 <= most <= 20:
            continue
        least = of_google(drawn, pessimistic=False).get_epsilon_for_delta(delta)
        assert least <= epsilon([drawn], delta=delta) <= 1.10 * most, drawn
        compared += 1


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize(
    "charges",
    [
        [charge(0.5, 1.0, 1)],
        [charge(5.0, 1.0, 10), charge(20.0, 1.0, 1000)],
        [charge(400.0, 1.0, 100), replace(STEP, sampling_rate=1.0, noise_multiplier=80.0)],
        [replace(EXCHANGE, noise_multiplier=3.0, steps=9)],
    ],
)
def test_epsilon_of_all_units_is_the_exact_one(charges, delta):
    """Within 1 % and 0.001 above it, from ε 0.03 to 16; replace-one is charged like add-remove."""
    truth = exact(*charges, delta=delta)
    assert truth <= epsilon(charges, delta=delta) <= 1.01 * truth + 1e-3


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_many_kinds_of_steps_are_composed_exactly(delta):
    """Sampled so nearly in full that the exact ε is known, but not taken together beforehand."""
    charges = [charge(z, 1 - 1e-14, 500) for z in (60.0, 40.0, 90.0)]
    truth = exact(*charges, delta=delta)
    assert (1 - 1e-6) * truth <= epsilon(charges, delta=delta) <= 1.01 * truth


@pytest.mark.parametrize(
    "few", [charge(60.0, 0.05, 100), charge(8.0, 0.001, 300), charge(500.0, 0.5, 20)]
)
def test_a_tiny_epsilon_is_an_upper_bound_too(few):
    """Below 0.1, where discretisation is coarse: 0.002 above Google's estimates at most."""
    least = of_google(few, pessimistic=False, interval=1e-6).get_epsilon_for_delta(1e-5)
    most = of_google(few, pessimistic=True, interval=1e-6).get_epsilon_for_delta(1e-5)
    assert most < 0.1
    assert least <= epsilon([few], delta=1e-5) <= most + 2e-3


def test_epsilon_holds_where_double_precision_ends():
    """100,000 steps at δ 1e-12: transforms give 7.53, which would be too little."""
    steps = charge(300.0, 1 - 1e-14, 100_000)
    truth = exact(steps, delta=1e-12)
    assert truth == pytest.approx(7.665, abs=1e-3)
    assert truth <= epsilon([steps], delta=1e-12) <= 1.05 * truth


def test_absurd_charges_cost_no_effort():
    """Next to no noise gives a huge ε, no failure; so do more steps than a grid can resolve."""
    assert 1000 < epsilon([charge(0.01, 0.5, 10)], delta=1e-5) < math.inf
    assert 50 < epsilon([charge(1.0, 0.5, 10**9)], delta=1e-5) < math.inf
    assert epsilon([charge(0.0, 0.5, 1)], delta=1e-5) == math.inf


def test_no_charge_costs_nothing():
    """Neither do no steps, nor a unit that is seen more rarely than δ allows."""
    assert epsilon([], delta=1e-5) == 0
    assert epsilon([charge(1.0, 0.02, 0)], delta=1e-5) == 0
    assert epsilon([charge(1.0, 1e-3, 1)], delta=1e-2) == 0


@pytest.mark.parametrize(
    ("charges", "message"),
    [
        ([STEP, replace(STEP, unit="client")], "client, add-remove; example, add-remove"),
        ([replace(STEP, sampling_rate=1.0), EXCHANGE], "example, replace-one"),
        ([replace(STEP, sampler="all")], "came with all and add-remove"),
        ([replace(EXCHANGE, sampling_rate=0.5, sampler="poisson")], "poisson and replace-one"),
    ],
)
def test_charges_that_do_not_add_up_are_refused(charges, message):
    """Of two units or adjacencies; and amplification where none is proven."""
    with pytest.raises(BudgetError, match=re.escape(message)):
        epsilon(charges, delta=1e-5)


@pytest.mark.parametrize(
    ("budget", "delta", "q", "steps"),
    [
        (8.0, 1e-6, 0.05, 100),
        (3.0, 1e-6, 0.05, 3000),
        (1.0, 1e-5, 1.0, 10),
        (0.3, 1e-5, 0.1, 100),
        (20.0, 1e-4, 0.01, 50),
    ],
)
def test_calibrated_noise_is_the_least(budget, delta, q, steps):
    """Google's accountant finds the budget used, not exceeded; 0.1 % less noise exceeds it."""
    z = noise_multiplier(epsilon=budget, delta=delta, sampling_rate=q, steps=steps)
    assert epsilon([charge(z, q, steps)], delta=delta) <= budget
    assert epsilon([charge(z / 1.00101, q, steps)], delta=delta) > budget
    spent = of_google(charge(z, q, steps), pessimistic=True).get_epsilon_for_delta(delta)
    assert 0.985 * budget < spent <= budget


def test_calibration_leaves_room_for_what_is_beside():
    """More noise than alone; together within the budget, and only just."""
    beside = [charge(3.0, 1.0, 2), charge(2.0, 0.02, 10)]
    alone = noise_multiplier(epsilon=3, delta=1e-5, sampling_rate=0.02, steps=100)
    z = noise_multiplier(epsilon=3, delta=1e-5, sampling_rate=0.02, steps=100, beside=beside)
    assert z > 1.05 * alone
    assert 2.97 < epsilon([charge(z, 0.02, 100), *beside], delta=1e-5) <= 3


def test_calibration_is_remembered():
    """The same question is answered without composing anything again."""
    question = {"epsilon": 2.0, "delta": 1e-5, "sampling_rate": 0.03, "steps": 77}
    first = noise_multiplier(**question)
    composed = calibration._epsilon.cache_info()
    assert noise_multiplier(**question, beside=[]) == first
    assert calibration._epsilon.cache_info() == composed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0 and at most 50; it is 0"),
        ({"epsilon": math.nan}, "epsilon must be above 0"),
        ({"epsilon": 50.1}, "epsilon must be above 0 and at most 50; it is 50.1"),
        ({"delta": 0.0}, "delta must be above 0 and at most 0.01; it is 0"),
        ({"delta": 0.011}, "delta must be above 0 and at most 0.01; it is 0.011"),
        ({"sampling_rate": 0.0}, "sampling_rate must be above 0 and at most 1; it is 0"),
        ({"sampling_rate": 1.1}, "sampling_rate must be above 0 and at most 1; it is 1.1"),
        ({"steps": 0}, "steps must be above 0 and a whole number; it is 0"),
        ({"steps": 10**12}, "noise multiplier above 8192"),
        ({"beside": [charge(1.0, 1.0, 1)]}, "beside the steps costs ε 4.3"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(wrong, message):
    """With the number that is out of its range, or what the budget does not allow."""
    sound = {"epsilon": 1.0, "delta": 1e-5, "sampling_rate": 0.1, "steps": 10}
    with pytest.raises(BudgetError, match=re.escape(message)):
        noise_multiplier(**sound | wrong)


@pytest.mark.parametrize("steps", [1, 16])
def test_signal_to_noise_is_that_of_sums(steps):
    """As measured on sums of aligned gradients at the clip norm and their noise, within 2 %."""
    batch, clip, z, parameters = 64, 0.3, 1.5, 20_000
    rng = np.random.default_rng(0)
    noise = sum(rng.normal(0, z * clip, parameters) for _ in range(steps))
    measured = steps * batch * clip / np.linalg.norm(noise)
    said = signal_to_noise(
        expected_batch=batch, noise_multiplier=z, parameters=parameters, steps=steps
    )
    assert said == pytest.approx(measured, rel=0.02)
