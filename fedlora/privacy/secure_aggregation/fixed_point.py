"""Updates as vectors in the ring of whole numbers modulo 2³², and their mean from the sum there."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.errors import SecureSumError
from fedlora.privacy.accounting.skellam import MOST_VALUES
from fedlora.privacy.secure_aggregation.poisson import RandomBits
from fedlora.privacy.secure_aggregation.skellam import add_skellam
from fedlora.privacy.whole_steps import BLOCK, norm, whole_steps

Vector = NDArray[np.uint32]
"""``(d + 1,)``: values as whole numbers modulo 2³², and the weight."""

_LARGEST = 2**31 - 1
"""Of a value of the sum, in steps: sums are read as signed numbers."""
_MOST_WEIGHT = 2**32 - 1
_WRAP_PROBABILITY = 2.0**-40
"""Most that a round's noise may have to make any value of its sum wrap around."""
_ROUNDING = 1 + 2.0**-20


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise that the clients of a round add to their vectors, each a share of it.

    The shares are symmetric Skellam variables, which add up to one.
    """

    deviation: float
    """Least standard deviation of the sum's noise, over the clip norm."""
    shares: int
    """From so many shares on the sum's noise has that deviation: honest clients at the threshold,
    ``threshold - colluders``."""

    def rate(self, steps: int) -> int:
        """Return λ of a share, whose variance is 2 λ, where ``steps`` make the clip norm."""
        return math.ceil((self.deviation * steps) ** 2 / (2 * self.shares))


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How clients write updates as whole numbers, so that their sum modulo 2³² is their sum.

    Guarantees:
        - A client's vector, without its noise, has an L2 norm of at most ``steps``, exactly, and of
          at most ``steps · weight / weights_up_to``: that is what one client adds to the sum.
        - Without noise no sum of up to ``clients`` vectors wraps around.
        - With noise the probability that any value of it does is ``wrap_probability``, at most
          2⁻⁴⁰.

    Why: no value is larger than its vector's norm, so ``clients`` values add up to at most
    ``clients · steps``, and that is at most 2³¹ - 1. With noise it is 2³¹ - 1 less what the noise
    exceeds with probability 2⁻⁴⁰ / 2³¹; no adapter has more values. Weights add up to at most
    ``clients · weights_up_to``, which is below 2³².

    Args:
        clients: most that are added up.
        clip_norm: largest L2 norm of an update.
        weights_up_to: largest weight. With noise it is 1, so that all clients count the same.
        noise: of the sum; none without differential privacy of clients.

    Raises:
        SecureSumError: these do not fit into 32 bits.
    """

    clients: int
    clip_norm: float
    weights_up_to: int = 1
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if self.clients * self.weights_up_to > _MOST_WEIGHT:
            raise SecureSumError(
                f"The weights of {self.clients} clients, each up to {self.weights_up_to}, must add "
                f"up to at most {_MOST_WEIGHT}. Take fewer clients a round, fewer local steps, or "
                "set federation.max_weight."
            )
        if not self.steps:
            raise SecureSumError(
                f"Sums of {self.clients} clients with the noise of this privacy do not fit into 32 "
                "bits. Raise privacy.epsilon, or take fewer rounds."
            )

    @cached_property
    def steps(self) -> int:
        """Whole steps that make ``clip_norm``: the most with which sums fit."""
        most = _LARGEST // self.clients
        if self.noise is None:
            return most
        least = 0
        while least < most:
            middle = (least + most + 1) // 2
            if self._wrap_probability(middle) <= _WRAP_PROBABILITY:
                least = middle
            else:
                most = middle - 1
        return least

    @property
    def wrap_probability(self) -> float:
        """Most that a round has to wrap around at any value; 0 without noise."""
        return self._wrap_probability(self.steps)

    def encode(self, values: Tensor, *, weight: int, bits: RandomBits | None = None) -> Vector:
        """Return an update, clipped and weighted, with its share of the noise if there is one.

        Args:
            values: ``(d,)`` float32; they are left as they are.
            weight: from 1 to ``weights_up_to``.
            bits: what noise is drawn from; none: a key stream with a fresh key of the system's.

        Returns:
            ``(d + 1,)``; the last is the weight.

        Raises:
            SecureSumError: a value is not finite, or the weight is out of its range.
        """
        if not 1 <= weight <= self.weights_up_to:
            raise SecureSumError(
                f"The weight in a secure sum must be from 1 to {self.weights_up_to}; it is "
                f"{weight}."
            )
        length = norm(values)
        if not math.isfinite(length):
            raise SecureSumError(
                "The update has a value that is not finite, and would spoil the sum of all. This "
                "site sits the round out."
            )
        vector = torch.empty(len(values) + 1, dtype=torch.int32)
        steps = self.steps * (weight / self.weights_up_to)
        parts = whole_steps(values, norm=length, clip_norm=self.clip_norm, steps=steps)
        for into, part in zip(vector[:-1].split(BLOCK), parts, strict=True):
            into.copy_(part)
        encoded = vector.numpy().view(np.uint32)
        encoded[-1] = weight
        if self.noise is not None:
            add_skellam(encoded[:-1], rate=self.noise.rate(self.steps), bits=bits)
        return encoded

    def decode(self, total: Vector) -> tuple[Tensor, int]:
        """Return the mean that a sum of encoded updates says, and their weights' sum.

        With noise it is the sum over ``clients``, however many came: a fixed denominator, as in
        ``central.noised_mean``.

        Args:
            total: ``(d + 1,)``; it is left as it is.

        Returns:
            ``(d,)`` float32, and the total weight.

        Raises:
            SecureSumError: the weight is none that a sum of so many can have.
        """
        weight = int(total[-1])
        if not 1 <= weight <= self.clients * self.weights_up_to:
            raise SecureSumError(
                "The secure sum came out with a total weight that its clients cannot have: it was "
                "unmasked wrongly, or a client broke the protocol. The round is void."
            )
        signed, unit = total[:-1].view(np.int32), self._unit(weight)
        values = np.empty(len(signed), np.float32)
        for start in range(0, len(signed), BLOCK):
            values[start : start + BLOCK] = signed[start : start + BLOCK] * unit
        return torch.from_numpy(values), weight

    def error_bound(self, total_weight: int) -> float:
        """Return the most that a value of the mean is off, in the unit of the values.

        Off the weighted mean of the updates clipped to ``clip_norm`` less a millionth of it, plus
        the noise if any, before the mean is rounded to float32: less than a step for each client.
        """
        return self.clients * self._unit(total_weight) * _ROUNDING

    def _unit(self, total_weight: int) -> float:
        """Return what a step of the sum is in the mean."""
        denominator = total_weight / self.weights_up_to if self.noise is None else self.clients
        return self.clip_norm / self.steps / denominator

    def _wrap_probability(self, steps: int) -> float:
        if self.noise is None:
            return 0.0
        room = _LARGEST - self.clients * steps
        variance = 2.0 * self.noise.rate(steps) * self.clients
        return min(1.0, 2 * MOST_VALUES * skellam_tail(room + 1, variance=variance))


def skellam_tail(least: int, *, variance: float) -> float:
    """Return an upper bound of the probability that a symmetric Skellam variable is so large.

    By Chernoff 1952: the variable X has ``E exp(h X) = exp(variance · (cosh h - 1))`` (Skellam
    1946, doi:10.2307/2981372), and ``h = asinh(least / variance)`` makes
    ``E exp(h X) / exp(h · least)`` smallest.
    """
    ratio = least / variance
    saved = least * (math.asinh(ratio) - ratio / (1 + math.hypot(1, ratio)))
    return math.exp(-saved)
