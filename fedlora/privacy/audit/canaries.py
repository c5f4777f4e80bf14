"""Canaries: records that are as easy to see as a record can be, and who looks out for them.

The gradient of each is at one place of its own, and so large that clipping leaves all that a record
may weigh. A canary that is in the data is drawn, clipped, summed and noised with the others, by the
code that does it to them. What one sees of it in a step is therefore 1, if it was drawn, plus the
noise: nobody sees more of any record than that (Dirac canaries, Nasr et al. 2023,
arXiv:2302.07956).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.errors import RunError
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.clipping import ClippedSum
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.source import NoiseSource, RoundSource

_HEIGHT = 100.0
"""A canary's gradient over the clip norm: it must be clipped, too."""
_VALUES = 2**24
"""Of the canaries' gradients, that are in memory at a time."""


class Canaries:
    """Canaries of one game: which are in the data, which were drawn, and how each looks by now.

    The observer knows all but the coins and the noise: the other records, and which of them were
    drawn. Privacy must hold against them as well. Their score of a canary is the privacy loss: the
    log of how much more likely what they saw is with it, if the noise is as was promised. No other
    score tells more (Neyman and Pearson 1933).
    """

    def __init__(self, count: int, *, promised: Charge, source: NoiseSource) -> None:
        """Toss a coin for each canary.

        Args:
            count: of canaries, half of which are in, on average.
            promised: noise and sampling rate of a step, as the accountant was told.
            source: of the coins.
        """
        self.included = np.zeros(count, dtype=np.bool_)
        """``(count,)``: the secret."""
        self.included[source.poisson_sample(count, 1 / 2)] = True
        self.scores: NDArray[np.float64] = np.zeros(count)
        """``(count,)``: the more, the more likely a canary is in."""
        self._promised = promised
        self._drawn: NDArray[np.int64] | None = None

    def among(self, source: RoundSource) -> RoundSource:
        """Return a source that draws the canaries that are in together with the records."""
        return _Among(source, self)

    def draw(self, places: list[int]) -> None:
        """Take note of which of those that are in have been drawn for the next step."""
        self._drawn = np.flatnonzero(self.included)[places]

    def gradients(self, total: ClippedSum) -> Iterator[list[Tensor]]:
        """Yield the gradients of those that were drawn, some at a time, as ``total`` takes them.

        Raises:
            RunError: no sample was drawn for this step, or there are more canaries than places.
        """
        drawn, self._drawn = self._drawn, None
        size = total.values.numel()
        if drawn is None:
            raise RunError("A private step was taken without drawing its records.")
        if len(self.included) > size:
            raise RunError(
                f"{len(self.included)} canaries need as many trained numbers, but there are {size}."
            )
        at = torch.from_numpy(self._places(size)[drawn])
        for some in at.split(max(1, _VALUES // size)):
            gradients = torch.zeros(len(some), size, device=total.values.device)
            gradients[torch.arange(len(some)), some] = _HEIGHT * total.clip_norm
            yield list(gradients.split(total.sizes, dim=1))

    def look(self, seen: Tensor) -> None:
        """Score what a step shows.

        Args:
            seen: what was released, less the share of the other records, over the clip norm, flat.
        """
        q, z = self._promised.sampling_rate, self._promised.noise_multiplier
        x = seen.cpu().numpy()[self._places(seen.numel())]
        with np.errstate(divide="ignore"):  # q may be 1
            self.scores += np.logaddexp(np.log1p(-q), math.log(q) + (x - 1 / 2) / z**2)

    def _places(self, size: int) -> NDArray[np.int64]:
        """Return where each canary is seen: far apart, and in all tensors."""
        count = len(self.included)
        return np.arange(count) * size // count


class CanaryDpSgd(DpSgd):
    """DP-SGD with canaries among the records; nothing else about it is different."""

    def __init__(
        self,
        canaries: Canaries,
        charge: Charge,
        *,
        expected_examples: float,
        source: NoiseSource,
        rows: int = 1,
    ) -> None:
        super().__init__(charge, expected_examples=expected_examples, source=source, rows=rows)
        self._canaries = canaries

    def privatised(self, total: ClippedSum) -> Tensor:
        """Return the step's gradient, with the canaries that were drawn in it."""
        others = total.values.clone()
        for gradients in self._canaries.gradients(total):
            total.add(gradients)
        gradient = super().privatised(total)
        released = gradient.double().mul_(self._expected)
        self._canaries.look(released.sub_(others).div_(total.clip_norm))
        return gradient


@dataclass(frozen=True)
class _Among:
    """Draws records and canaries alike."""

    _source: RoundSource
    _canaries: Canaries

    def gaussian(self, count: int) -> Tensor:
        return self._source.gaussian(count)

    def poisson_sample(self, count: int, rate: float) -> list[int]:
        present = int(self._canaries.included.sum())
        drawn = self._source.poisson_sample(count + present, rate)
        self._canaries.draw([place - count for place in drawn if place >= count])
        return [place for place in drawn if place < count]

    def secret(self) -> str:
        return self._source.secret()
