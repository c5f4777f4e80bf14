"""Client-level privacy at a trusted aggregator: each update clipped, their sum noised once."""

import math

import torch

from fedlora.adapter import AdapterSpec, AdapterUpdate
from fedlora.privacy.charge import Adjacency, Charge
from fedlora.privacy.dp_sgd.self_check import require_noise
from fedlora.privacy.source import NoiseSource
from fedlora.privacy.whole_steps import BLOCK, norm, whole_steps

_UNITS = 2**30
"""Units that make a clip norm."""


class ClientSum:
    """The sum over clients of updates, each clipped: all that a release may use of them.

    It is the decoded update that is clipped: rounding on the wire may have made it larger.

    Guarantees:
        - One client more or less changes the sum by at most ``clip_norm``, in L2 over all values
          together, and one in another's place by at most twice that: exactly, whatever the updates
          are, for any number of clients below 2²².
        - An update that is not finite counts as one that is zero.
        - The sum is the same in any order of the clients.
        - One vector of float64 is kept, and the updates are left as they are.

    Why: a clipped value is cut, towards zero, to a whole number of units, 2³⁰ of which make
    ``clip_norm`` (``whole_steps``). Whole numbers below 2⁵³ are added in float64 without rounding,
    so what a client changes the sum by is its own vector of units and nothing else.
    """

    def __init__(self, spec: AdapterSpec, *, clip_norm: float) -> None:
        self.spec = spec
        self.clip_norm = clip_norm
        self.units = torch.zeros(spec.size, dtype=torch.float64)
        """``(spec.size,)`` float64, whole numbers: the sum, in units of ``clip_norm / 2³⁰``."""

    def add(self, update: AdapterUpdate) -> None:
        """Clip a client's update and add it.

        Raises:
            AdapterError: it is of another adapter.
        """
        self.spec.require_same(update.spec)
        length = norm(update.values)
        if not math.isfinite(length):
            return
        parts = whole_steps(update.values, norm=length, clip_norm=self.clip_norm, steps=_UNITS)
        for into, part in zip(self.units.split(BLOCK), parts, strict=True):
            into.add_(part)


def sensitivity(clip_norm: float, adjacency: Adjacency) -> float:
    """Return the most that a sum of clipped updates differs by between neighbours, in L2."""
    return 2 * clip_norm if adjacency == "replace-one" else clip_norm


def noised_mean(
    total: ClientSum, charge: Charge, *, expected: int, num_examples: int, source: NoiseSource
) -> AdapterUpdate:
    """Return the sum of clipped updates, noised, over the *expected* number of clients.

    Without a client it is noise alone.

    Args:
        total: of the round's clients; what is in it afterwards is of no use.
        charge: what was committed to the ledger.
        expected: the fixed number of clients of a round; never the number that came.
        num_examples: what the update is to say; a public number, likewise.
        source: of the noise.

    Raises:
        RunError: the noise is not what it was calibrated to.

    References:
        McMahan et al. 2018, arXiv:1710.06963, section 2.2, the estimator with a fixed denominator.
    """
    unit = total.clip_norm / _UNITS
    deviation = charge.noise_multiplier * sensitivity(_UNITS, charge.adjacency)
    for part in total.units.split(BLOCK):
        clipped = part.clone()
        part.add_(source.gaussian(len(part)), alpha=deviation)
        require_noise([part - clipped], deviation=deviation)
        part.mul_(unit / expected)
    return AdapterUpdate(spec=total.spec, values=total.units.float(), num_examples=num_examples)
