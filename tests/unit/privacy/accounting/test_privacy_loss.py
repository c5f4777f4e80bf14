"""The privacy loss of a step, in both directions, against integrals of its densities."""

import math

import numpy as np
import pytest
from opacus.accountants.analysis.prv import Domain
from scipy.stats import norm

from fedlora.privacy.accounting.privacy_loss import _Loss, _total, composed
from fedlora.privacy.accounting.renyi import Gaussian

GRID = Domain(t_min=-8.0, t_max=8.0 + 16 / 8190, size=8192)
CASES = [(1.0, 0.3), (0.6, 0.01), (2.0, 1.0), (0.5, 0.1)]


def densities(z: float, q: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the densities of the sum with and without the unit, and the width of a cell."""
    x, width = np.linspace(-12 * z, 1 + 12 * z, 400_001, retstep=True)
    without = norm.pdf(x, 0, z)
    return (1 - q) * without + q * norm.pdf(x, 1, z), without, width


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize(("z", "q"), CASES)
def test_a_step_s_delta_is_the_integral(z, q, removed):
    """Of what the one density has beyond e^ε times the other, in the direction that is meant."""
    one, other, width = densities(z, q)
    if not removed:
        one, other = other, one
    total = _total((Gaussian(z, q, 1),), GRID, removed=removed)
    for eps in (-0.5, 0.0, 0.2, 1.0, 3.0):
        delta = np.sum(np.maximum(one - np.exp(eps) * other, 0)) * width
        assert total.compute_delta_estimate(eps) == pytest.approx(delta, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize(("z", "q"), CASES)
def test_the_mean_loss_is_the_integral(z, q, removed):
    """To ten digits after the point."""
    one, other, _ = densities(z, q)
    if not removed:
        one, other = other, one
    seen = (one > 0) & (other > 0)
    loss = np.log(one[seen]) - np.log(other[seen])
    weight = one[seen]
    mean = _Loss(Gaussian(z, q, 1), GRID, removed=removed).mean()
    assert mean == pytest.approx(np.dot(weight, loss) / weight.sum(), abs=1e-10)


@pytest.mark.parametrize("removed", [True, False])
def test_the_loss_is_cut_off_at_the_ends_of_the_grid(removed):
    """All of its mass lies between them, however little the noise."""
    loss = _Loss(Gaussian(0.2, 0.5, 1), GRID, removed=removed)
    ends = np.array([-100.0, GRID.t_min, GRID.t_max, 100.0])
    assert loss.cdf(ends).tolist() == [0, 0, 1, 1]


def test_what_no_grid_resolves_is_infinite():
    """So many steps that discretisation has no bounded error, or that rounding is all of δ."""
    many = Gaussian(1e5, 1e-4, 10**11)
    assert composed((many,), delta=1e-3, about=1) == math.inf
    assert composed((many._replace(steps=10**6),), delta=1e-9, about=1) == math.inf
    assert composed((many._replace(steps=10**6),), delta=1e-6, about=1) < 0.1
