"""FedIT: the weighted mean of the factors, A and B apart."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate, TensorSpec
from fedlora.errors import AdapterError


class Average:
    """Weighted mean of A and of B: ``A += Σ wᵢ ΔAᵢ / Σ wᵢ``, and B likewise.

    *Communicates* both factors. *Plain weighted sum*: yes. *Mixed ranks*: no.

    What to expect: simple, cheap, and inexact, because the mean of products is not the product of
    means. On trained adapters the difference is about a fifth of a round's update; it grows with
    the local steps.

    References:
        Zhang et al. 2023, arXiv:2305.05644, section 3.2; weights as in McMahan et al. 2016,
        arXiv:1602.05629, algorithm 1.
    """

    def __init__(self) -> None:
        self._spec: AdapterSpec | None = None
        self._sum = torch.empty(0)
        self._weight = 0.0
        self._examples = 0

    def plan(self, number: int, spec: AdapterSpec) -> tuple[TensorSpec, ...]:  # noqa: ARG002 - all rounds are alike
        return spec.tensors

    def begin(self, global_adapter: AdapterState) -> None:
        self._spec = global_adapter.spec
        self._sum = torch.zeros_like(global_adapter.values)
        self._weight, self._examples = 0.0, 0

    def add(self, update: AdapterUpdate, weight: float) -> None:
        if not (weight > 0 and math.isfinite(weight)):
            raise AdapterError(f"A weight must be positive and finite, but it is {weight}.")
        self._begun().require_same(update.spec)
        self._sum.add_(update.values, alpha=weight)
        self._weight += weight
        self._examples += update.num_examples

    def finish(self) -> AdapterUpdate:
        spec = self._begun()
        if not self._weight:
            raise AdapterError("There is no update to average: add at least one.")
        self._spec = None
        mean = self._sum.div_(self._weight)
        return AdapterUpdate(spec=spec, values=mean, num_examples=self._examples)

    def state(self) -> Mapping[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing: a mean remembers nothing between rounds."""

    def _begun(self) -> AdapterSpec:
        if self._spec is None:
            raise AdapterError("The round was not begun: call begin() before add() and finish().")
        return self._spec
