"""How well a base model predicts held-out text, alone or with an adapter."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from fedlora.adapter import AdapterState
from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch
from fedlora.training.objectives import token_losses


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss over supervised tokens; evaluations of disjoint rows add up exactly."""

    loss_sum: float
    """In nats, over all tokens."""
    tokens: int

    @property
    def loss(self) -> float:
        """Mean loss in nats per token; not a number when there are no tokens."""
        return self.loss_sum / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite where that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(
            loss_sum=self.loss_sum + other.loss_sum, tokens=self.tokens + other.tokens
        )


@torch.no_grad()
def evaluate(base: BaseModel, state: AdapterState | None, batches: Iterable[Batch]) -> Evaluation:
    """Return the loss on ``batches`` with the adapter ``state``, or of the base alone if ``None``.

    The base keeps ``state`` as its adapter and stays in evaluation mode.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    if state is not None:
        base.load_adapter(state)
    base.model.eval()
    total = Evaluation(loss_sum=0.0, tokens=0)
    with base.adapter_off() if state is None else nullcontext():
        for batch in batches:
            losses, tokens = token_losses(base, batch)
            loss_sum = float(losses.sum(dtype=torch.float64))
            total += Evaluation(loss_sum=loss_sum, tokens=int(tokens.sum()))
    return total
