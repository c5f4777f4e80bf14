"""How well a base model does on held-out rows, alone or with an adapter."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fedlora.adapter import AdapterState
from fedlora.training.base_model import BaseModel


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of what was counted are so; shares of disjoint rows add up exactly."""

    total: int
    count: int

    @property
    def value(self) -> float:
        """In [0, 1]; not a number when nothing was counted."""
        return self.total / self.count if self.count else math.nan

    @classmethod
    def of(cls, marks: Tensor) -> "Share":
        """Return how many of some marks, bool of any shape, are set."""
        return cls(total=int(marks.sum()), count=marks.numel())

    def __add__(self, other: "Share") -> "Share":
        return Share(total=self.total + other.total, count=self.count + other.count)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Sums over rows, of which all means are made; evaluations of disjoint rows add up exactly."""

    loss_sum: float
    """In nats, over all tokens."""
    tokens: int
    """What the loss is a mean over: supervised tokens; of other objectives, pairs or rows."""
    shares: Mapping[str, Share] = field(default_factory=dict)
    """What else the objective counts, by name, such as ``token_accuracy``. Of a class ``k``, there
    is ``f1.k``: its F1 is twice its hits over how often it was predicted and how often it is
    there."""

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

    @property
    def means(self) -> dict[str, float]:
        """The shares by name; those of classes as one mean over the classes, such as ``macro_f1``.

        A class that is neither there nor predicted does not count.
        """
        means = {name: share.value for name, share in self.shares.items() if "." not in name}
        classes: dict[str, list[float]] = {}
        for name, share in self.shares.items():
            if "." in name and share.count:
                classes.setdefault(name.partition(".")[0], []).append(share.value)
        return means | {f"macro_{name}": fmean(values) for name, values in classes.items()}

    def __add__(self, other: "Evaluation") -> "Evaluation":
        shares = dict(self.shares)
        for name, share in other.shares.items():
            shares[name] = shares[name] + share if name in shares else share
        return Evaluation(
            loss_sum=self.loss_sum + other.loss_sum,
            tokens=self.tokens + other.tokens,
            shares=shares,
        )


_T = TypeVar("_T")

Measure: TypeAlias = Callable[[BaseModel, Any], Evaluation]
"""Measures a batch of an objective's kind."""

Losses: TypeAlias = Callable[[BaseModel, Any], Tensor]
"""Gives the loss of each row of such a batch, ``(rows,)``."""


def evaluate(
    base: BaseModel, state: AdapterState | None, batches: Iterable[Any], *, measure: Measure
) -> Evaluation:
    """Return what is measured of ``batches`` with the adapter, or of the base alone if ``None``.

    The base keeps ``state`` as its adapter and stays in evaluation mode.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    nothing = Evaluation(loss_sum=0.0, tokens=0)
    return sum(_each(base, state, batches, compute=measure), start=nothing)


def example_losses(
    base: BaseModel, state: AdapterState | None, batches: Iterable[Any], *, losses: Losses
) -> list[float]:
    """Return the loss of each example, as a training sees it.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    return [loss for each in _each(base, state, batches, compute=losses) for loss in each.tolist()]


def clipped_loss_sum(
    base: BaseModel,
    state: AdapterState | None,
    batches: Iterable[Any],
    *,
    losses: Losses,
    largest: float,
) -> float:
    """Return the sum over the examples of their losses, each cut to ``largest``.

    Guarantees:
        An example more or less changes the sum by at most ``largest``, if the loss of an example
        depends on no other: one that is not a number counts as ``largest``.

    Raises:
        AdapterError: the adapter does not fit the base.
    """
    total = 0.0
    for each in _each(base, state, batches, compute=losses):
        cut = each.double().nan_to_num(nan=largest).clamp(min=0, max=largest)
        total += float(cut.sum())
    return total


@torch.no_grad()
def _each(
    base: BaseModel,
    state: AdapterState | None,
    batches: Iterable[Any],
    *,
    compute: Callable[[BaseModel, Any], _T],
) -> Iterator[_T]:
    """Yield what is computed of each batch, without gradients."""
    if state is not None:
        base.load_adapter(state)
    base.model.eval()
    with base.adapter_off() if state is None else nullcontext():
        for batch in batches:
            yield compute(base, batch)
