"""Client-level privacy at a trusted aggregator: each update clipped, their sum noised once."""

from dataclasses import replace

import torch

from fedlora.adapter import AdapterUpdate
from fedlora.privacy.charge import Charge
from fedlora.privacy.source import NoiseSource

_MARGIN = 1e-6
"""By how much clipping stays below the bound, relatively: more than float32 loses by rounding."""


def clipped(update: AdapterUpdate, *, norm: float) -> AdapterUpdate:
    """Return the update with an L2 norm, over all of its values, of at most ``norm``.

    It is the decoded update that is clipped: rounding on the wire may have made it larger.
    """
    length = float(torch.linalg.vector_norm(update.values, dtype=torch.float64))
    if length <= norm * (1 - _MARGIN):
        return update
    return replace(update, values=update.values * (norm * (1 - _MARGIN) / length))


def noised_mean(
    mean: AdapterUpdate, charge: Charge, *, folded: int, expected: int, source: NoiseSource
) -> AdapterUpdate:
    """Return the sum of clipped updates, noised, over the *expected* number of clients.

    Args:
        mean: of the updates, each with weight one.
        charge: what was committed to the ledger.
        folded: how many updates the mean is of.
        expected: the fixed number of clients of a round; never the number that came.
        source: of the noise.

    References:
        McMahan et al. 2018, arXiv:1710.06963, section 2.2, the estimator with a fixed denominator.
    """
    deviation = charge.noise_multiplier * charge.sensitivity
    total = source.gaussian(mean.spec.size).mul_(deviation).add_(mean.values, alpha=folded)
    return replace(mean, values=total.div_(expected).float())
