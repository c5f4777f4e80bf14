"""Rényi differential privacy of charges: for each order a number, and the numbers add up."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from opacus.accountants.analysis.rdp import (  # type: ignore[import-untyped]  # it ships no types
    compute_rdp,
)

from fedlora.errors import BudgetError
from fedlora.privacy.accounting import skellam
from fedlora.privacy.charge import Charge

Curve = NDArray[np.float64]
"""A Rényi divergence, or an ε, for each order."""


class Gaussian(NamedTuple):
    """Steps of a Gaussian mechanism on a Poisson sample."""

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def divergence(self, orders: tuple[float, ...]) -> Curve:
        """Return the Rényi divergence of one step at each order."""
        return _of_one_step(self.noise_multiplier, self.sampling_rate, orders)


class Skellam(NamedTuple):
    """Steps of Skellam noise on whole numbers, of which ``granularity`` make the sensitivity."""

    noise_multiplier: float
    granularity: int
    steps: int

    def divergence(self, orders: tuple[float, ...]) -> Curve:
        """Return the Rényi divergence of one step at each order."""
        return skellam.divergence(
            self.noise_multiplier, granularity=self.granularity, orders=orders
        )


Mechanism: TypeAlias = Gaussian | Skellam
"""What all accountants compose."""


def mechanisms(charges: Iterable[Charge]) -> tuple[Mechanism, ...]:
    """Return the mechanisms of charges, sorted, equal ones as one, those without a step left out.

    Raises:
        BudgetError: charges of several units or adjacencies, whose ε say different things and do
            not add; a sampling rate below one of a sampler other than ``poisson``, or under
            replace-one, or with Skellam noise, for which no amplification known here holds.
    """
    relations, steps = set(), Counter[Mechanism]()
    for charge in charges:
        if charge.sampling_rate < 1 and (charge.sampler, charge.adjacency, charge.granularity) != (
            "poisson",
            "add-remove",
            None,
        ):
            raise BudgetError(
                "A sampling_rate below 1 needs the sampler poisson, the adjacency add-remove and "
                f"normal noise, but came with {charge.sampler} and {charge.adjacency} and "
                f"{charge.mechanism} noise. Charge all units: sampling_rate 1."
            )
        relations.add(f"{charge.unit}, {charge.adjacency}")
        steps[_step(charge)] += charge.steps
    if len(relations) > 1:
        raise BudgetError(
            "One unit and one adjacency are expected of charges that are added up, but there are "
            f"{'; '.join(sorted(relations))}. Keep an account for each."
        )
    return tuple(sorted(one._replace(steps=count) for one, count in steps.items() if count))


def divergences(mechanisms: Iterable[Mechanism], orders: tuple[float, ...]) -> Curve:
    """Return the Rényi divergence of the mechanisms' composition at each order.

    Guarantees:
        - An upper bound, whichever of two neighbours has the unit.

    Args:
        mechanisms: as many as there are.
        orders: each above 1, at most 1024.

    References:
        Mironov, Talwar and Zhang 2019, arXiv:1908.10530, sections 3.1 to 3.3; of Skellam noise as
        ``skellam.divergence``.
    """
    total = np.zeros(len(orders))
    for mechanism in mechanisms:
        total += mechanism.steps * mechanism.divergence(orders)
    return total


def epsilons(divergence: Curve, orders: tuple[float, ...], *, delta: float) -> Curve:
    """Return the ε at ``delta`` that each order's divergence implies; it may be negative.

    Guarantees:
        - A mechanism whose Rényi divergence of one of the orders is at most this is (ε, δ)-DP with
          that order's ε. It has to be the same order for all of the mechanism's outcomes.

    References:
        Canonne, Kamath and Steinke 2020, arXiv:2004.00010, proposition 12; Balle et al. 2020,
        arXiv:1905.09982, theorem 21.
    """
    alpha = np.array(orders, dtype=float)
    best: Curve = divergence + np.log1p(-1 / alpha) - (np.log(delta) + np.log(alpha)) / (alpha - 1)
    return best


def _step(charge: Charge) -> Mechanism:
    """Return one step of a charge."""
    if charge.granularity is None:
        return Gaussian(charge.noise_multiplier, charge.sampling_rate, 1)
    return Skellam(charge.noise_multiplier, charge.granularity, 1)


@lru_cache(maxsize=4096)
def _of_one_step(noise_multiplier: float, sampling_rate: float, orders: tuple[float, ...]) -> Curve:
    curve: Curve = compute_rdp(
        q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders)
    )
    return curve.clip(min=0)  # rounding may leave a divergence of almost nothing below it
