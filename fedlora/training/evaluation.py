"""How well a base model predicts held-out text, alone or with an adapter."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.training.base_model import BaseModel
from fedlora.training.objectives import token_losses

Measure: TypeAlias = Callable[[BaseModel, Any], tuple[Tensor, Tensor]]
"""Gives each example's summed loss, ``(batch,)``, and what it is over: its supervised tokens, or
the one label that a text has."""


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


def evaluate(
    base: BaseModel,
    state: AdapterState | None,
    batches: Iterable[Any],
    *,
    measure: Measure = token_losses,
) -> Evaluation:
    """Return the loss on ``batches`` with the adapter ``state``, or of the base alone if ``None``.

    The base keeps ``state`` as its adapter and stays in evaluation mode.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    total = Evaluation(loss_sum=0.0, tokens=0)
    for losses, tokens in _measured(base, state, batches, measure=measure):
        loss_sum = float(losses.sum(dtype=torch.float64))
        total += Evaluation(loss_sum=loss_sum, tokens=int(tokens.sum()))
    return total


def example_losses(
    base: BaseModel,
    state: AdapterState | None,
    batches: Iterable[Any],
    *,
    measure: Measure = token_losses,
) -> list[float]:
    """Return the mean loss per token of each example, in nats, as ``evaluate`` sums them.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    return [
        loss
        for losses, tokens in _measured(base, state, batches, measure=measure)
        for loss in (losses.double() / tokens.clamp(min=1)).tolist()
    ]


def clipped_loss_sum(
    base: BaseModel,
    state: AdapterState,
    batches: Iterable[Any],
    *,
    largest: float,
    measure: Measure = token_losses,
) -> float:
    """Return the sum over the examples of their mean losses per token, each cut to ``largest``.

    Guarantees:
        An example more or less changes the sum by at most ``largest``: a loss that is not a number
        counts as ``largest``, and one of an example without supervised tokens as zero.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    total = 0.0
    for losses, tokens in _measured(base, state, batches, measure=measure):
        means = (losses.double() / tokens.clamp(min=1)).nan_to_num(nan=largest)
        total += float(means.clamp(min=0, max=largest).sum())
    return total


@torch.no_grad()
def _measured(
    base: BaseModel, state: AdapterState | None, batches: Iterable[Any], *, measure: Measure
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is measured of each batch, example by example."""
    if state is not None:
        base.load_adapter(state)
    base.model.eval()
    with base.adapter_off() if state is None else nullcontext():
        for batch in batches:
            yield measure(base, batch)
