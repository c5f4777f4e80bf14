"""What charges cost, and how much noise a budget asks for, when all is fixed beforehand."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from fedlora.errors import BudgetError
from fedlora.privacy.accounting import privacy_loss
from fedlora.privacy.accounting.renyi import Gaussian, Mechanism, mechanisms
from fedlora.privacy.charge import Charge

LARGEST_EPSILON = 50.0
"""Above it a promise says nothing: no noise is calibrated for it, and no effort spent on it."""
_LARGEST_DELTA = 1e-2
_LARGEST_NOISE = 2.0**13
_PRECISION = 1.001
"""Calibrated noise over the least."""


def epsilon(charges: Sequence[Charge], *, delta: float) -> float:
    """Return the ε at ``delta`` of charges that were all fixed before the first was drawn.

    Guarantees:
        - An upper bound, whichever of two neighbours has the unit.
        - Close, as ``privacy_loss.composed`` says; above ``LARGEST_EPSILON``, and with Skellam
          noise, it is what Rényi divergences prove, which is more.
        - 0 without a charge; the same for any order of the charges.

    For charges that are chosen in the light of others there is ``RenyiFilter``.

    Args:
        charges: as a ledger accepts them, of one unit and adjacency.
        delta: between 0 and 1.

    Raises:
        BudgetError: the charges do not add up to one promise, as ``mechanisms`` says.

    References:
        As ``privacy_loss.composed``, behind a bound by Rényi divergences.
    """
    return _epsilon(mechanisms(charges), delta)


def noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    beside: Sequence[Charge] = (),
) -> float:
    """Return the least noise with which steps and what is beside them cost at most (ε, δ).

    Guarantees:
        - ``epsilon()`` of ``beside`` and these steps, with the noise returned, is at most ε.
        - It is at most 0.1 % above the least noise of which that holds.

    Args:
        epsilon: above 0, at most ``LARGEST_EPSILON``.
        delta: above 0, at most 0.01.
        sampling_rate: q, above 0, at most 1; below 1 by Poisson draws, under add-remove.
        steps: at least 1.
        beside: what else is charged and fixed beforehand, of the unit and adjacency of the steps.

    Raises:
        BudgetError: a number is out of its range, ``beside`` alone costs more than ε, or a noise
            multiplier above 8192 would be needed.
    """
    _require_ranges(epsilon=epsilon, delta=delta, sampling_rate=sampling_rate, steps=steps)
    wanted = Gaussian(math.inf, sampling_rate, steps)
    return _noise_multiplier(wanted, budget=epsilon, delta=delta, beside=mechanisms(beside))


def least_charge(charge_of: Callable[[float], Charge], *, epsilon: float, delta: float) -> Charge:
    """Return the charge of the least noise that costs at most (ε, δ), of those a function makes.

    For mechanisms whose other facts change with their noise, such as the granularity of Skellam's.

    Guarantees:
        - ``epsilon()`` of the charge returned is at most ε.
        - A noise multiplier 0.1 % smaller costs more than ε.

    Args:
        charge_of: makes the charge of a noise multiplier.
        epsilon: above 0, at most ``LARGEST_EPSILON``.
        delta: above 0, at most 0.01.

    Raises:
        BudgetError: a number is out of its range, or a noise multiplier above 8192 is needed.
    """
    _require_ranges(epsilon=epsilon, delta=delta)

    def fits(noise: float) -> bool:
        return _epsilon(mechanisms([charge_of(noise)]), delta) <= epsilon

    high = 1.0
    while not fits(high):
        high *= 2
        if high > _LARGEST_NOISE:
            raise BudgetError(
                f"ε {epsilon:g} at δ {delta:g} would take a noise multiplier above "
                f"{_LARGEST_NOISE:g}. Raise ε, or take fewer steps."
            )
    low = high / 2
    while fits(low):
        low, high = low / 2, low
    while high / low > _PRECISION:
        guess = math.sqrt(low * high)
        low, high = (low, guess) if fits(guess) else (guess, high)
    return charge_of(high)


def signal_to_noise(
    *, expected_batch: float, noise_multiplier: float, parameters: int, steps: int = 1
) -> float:
    """Return the norm of the clipped sums over that of their noise, at best.

    A step's sum has norm ``expected_batch · clip_norm`` if every gradient reaches the clip norm and
    all point the same way; its noise has ``noise_multiplier · clip_norm · sqrt(parameters)``. The
    clip norm cancels. Over steps whose sums agree, signal adds up, and noise as its square root:
    ``expected_batch · sqrt(steps) / (noise_multiplier · sqrt(parameters))``. Real gradients do not
    agree: expect less.

    Args:
        expected_batch: units in a step, on average.
        noise_multiplier: standard deviation of the noise over the clip norm (under replace-one that
            is twice the calibrated one, which is over the sensitivity).
        parameters: trained numbers.
        steps: how many sums are added up.
    """
    return expected_batch / noise_multiplier * math.sqrt(steps / parameters)


def _require_ranges(
    *, epsilon: float, delta: float, sampling_rate: float = 1.0, steps: int = 1
) -> None:
    ranges = {
        "epsilon": (0 < epsilon <= LARGEST_EPSILON, epsilon, f"at most {LARGEST_EPSILON:g}"),
        "delta": (0 < delta <= _LARGEST_DELTA, delta, f"at most {_LARGEST_DELTA:g}"),
        "sampling_rate": (0 < sampling_rate <= 1, sampling_rate, "at most 1"),
        "steps": (steps >= 1, steps, "a whole number"),
    }
    for name, (sound, value, most) in ranges.items():
        if not sound:
            raise BudgetError(
                f"To calibrate noise, {name} must be above 0 and {most}; it is {value:g}."
            )


@lru_cache(maxsize=1024)
def _epsilon(composed: tuple[Mechanism, ...], delta: float) -> float:
    if not composed:
        return 0.0
    bound = privacy_loss.bound(composed, delta=delta)
    normal = tuple(mechanism for mechanism in composed if isinstance(mechanism, Gaussian))
    if not bound <= LARGEST_EPSILON or normal != composed:
        return bound
    return min(bound, privacy_loss.composed(normal, delta=delta, about=bound))


@lru_cache(maxsize=256)
def _noise_multiplier(
    steps: Gaussian, *, budget: float, delta: float, beside: tuple[Mechanism, ...]
) -> float:
    def of(noise: float) -> tuple[Mechanism, ...]:
        return tuple(sorted((steps._replace(noise_multiplier=noise), *beside)))

    spent = _epsilon(beside, delta)
    if spent > budget:
        raise BudgetError(
            f"What is charged beside the steps costs ε {spent:g} at δ {delta:g}, and the budget is "
            f"ε {budget:g}. Charge less beside them, or raise ε."
        )
    high = 1.0
    while privacy_loss.bound(of(high), delta=delta) > budget:
        high *= 2
        if high > _LARGEST_NOISE:
            others = f", beside ε {spent:g}," if beside else ""
            raise BudgetError(
                f"ε {budget:g} at δ {delta:g} for {steps.steps} steps at a sampling rate of "
                f"{steps.sampling_rate:g}{others} would take a noise multiplier above "
                f"{_LARGEST_NOISE:g}. Raise ε, or take fewer steps or a lower rate."
            )
    least, low = _epsilon(of(high), delta), high
    most = least
    while most <= budget:
        high, least = low, most
        low /= 2
        most = _epsilon(of(low), delta)
    while high / low > _PRECISION:
        # Nearly a power law; the margins let both ends close in on it.
        share = math.log(most / budget) / math.log(most / max(least, 1e-9))
        guess = low * (high / low) ** share
        guess = min(max(guess, low * _PRECISION**0.5), high / _PRECISION**0.5)
        cost = _epsilon(of(guess), delta)
        low, most, high, least = (
            (low, most, guess, cost) if cost <= budget else (guess, cost, high, least)
        )
    return high
