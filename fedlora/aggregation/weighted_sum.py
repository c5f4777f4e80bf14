"""What the methods share whose round is a weighted sum of what the clients send."""

from dataclasses import replace

import torch

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation.round import Round, added, opened


class WeightedSum:
    """Weighted mean of the updates, value by value: ``Σ wᵢ shareᵢ uᵢ / Σ wᵢ``.

    The first update of a round says which factors are sent; the others must send the same.

    Guarantees:
        - The updates are left as they are; one vector of their size is kept beside them.
        - The mean of one update is that update, and the mean of equal updates is each of them, bit
          for bit, whatever the weights.
        - Each addition rounds once to float32, relative to the mean so far.
    """

    def __init__(self) -> None:
        self._round: Round | None = None
        self._mean: AdapterUpdate | None = None

    def begin(self, global_adapter: AdapterState) -> None:
        self._round, self._mean = Round(global_adapter=global_adapter), None

    def add(self, update: AdapterUpdate, weight: float, *, share: float = 1.0) -> None:
        current, mean = opened(self._round), self._mean
        if mean is None:
            current.require_factors(update.spec)
            mean = replace(update, values=torch.zeros_like(update.values))
        mean.spec.require_same(update.spec)
        part = current.part(weight, share=share)
        if share == 1:
            mean.values.lerp_(update.values, part)
        else:
            mean.values.mul_(1 - part).add_(update.values, alpha=part * share)
        self._mean = mean
        current.count(update, weight)

    def finish(self) -> AdapterUpdate:
        current, mean = opened(self._round), added(self._mean)
        self._round = self._mean = None
        return AdapterUpdate(spec=mean.spec, values=mean.values, num_examples=current.num_examples)
