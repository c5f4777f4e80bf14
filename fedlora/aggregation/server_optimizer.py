"""How the aggregator steps from one global adapter to the next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedlora import products
from fedlora.adapter import AdapterState, AdapterUpdate, overlap
from fedlora.errors import AdapterError

_UNNOTICED = 1e-6
"""A change below this part of what it is made of is rounding: factors are float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What a server optimiser made of a round's update."""

    adapter: AdapterState
    """The next global adapter."""
    tail: float
    """Frobenius norm of what the cut to the global adapter's rank dropped, relative to that of the
    change that was to be made; 0 where nothing is cut."""


class ServerOptimizer(Protocol):
    """Steps the global adapter by a round's update (Reddi et al. 2020, arXiv:2003.00295)."""

    def step(self, global_adapter: AdapterState, update: AdapterUpdate) -> Step:
        """Return the next global adapter.

        The update's values may be overwritten, and those of the global adapter by the next step.

        Raises:
            AdapterError: the update is not of this adapter.
        """

    def state(self) -> Mapping[str, Tensor]:
        """Return what a checkpoint between two rounds must keep."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state, whose tensors may be overwritten."""


class ProductMomentum:
    """Heavy ball on products, cut to the global rank, for methods that turn the factors.

    With G the global adapter, G' the one before it and T the round's outcome, all as products::

        next = best rank p of  G + learning_rate · (T - G) + momentum · (G - G')

    So the velocity, ``G - G'``, is of rank 2p and costs one adapter of memory. In the first step it
    is zero. Without momentum and with learning rate 1, T is not touched unless it is wider than G.

    The tail of a step is ``‖target - next‖ / ‖target - G‖``, the target being the sum before the
    cut; it is at most 1, because G is of the global rank. It is 0 where the target is G but for
    float32's rounding.

    Guarantees:
        - A component of the result that is zero keeps G's row of A.
        - Beyond G, G' and the update, memory is that of a few modules, but for the first step and
          an update of one factor, which take one adapter more. For that, the update's values are
          overwritten, and so are the values of G' by the next step: whoever needs an adapter for
          longer than the step after the one that returned it copies it.

    References:
        Polyak 1964, doi:10.1016/0041-5553(64)90137-5; as a server optimiser, Hsu et al. 2019,
        arXiv:1909.06335. The cut projects onto adapters of rank p.
    """

    def __init__(self, *, learning_rate: float, momentum: float) -> None:
        self._rate = learning_rate
        self._momentum = momentum
        self._previous: Tensor | None = None

    def step(self, global_adapter: AdapterState, update: AdapterUpdate) -> Step:
        target = _moved(global_adapter, update)
        rate, previous = self._rate, self._previous
        momentum = 0.0 if previous is None else self._momentum
        kept = global_adapter.values if self._momentum else None
        if rate == 1 and not momentum and target.spec.rank == global_adapter.spec.rank:
            self._previous = kept
            return Step(adapter=target, tail=0.0)
        change = [(rate, target), (momentum - rate, global_adapter)]
        if previous is not None:
            change.append((-momentum, AdapterState(spec=global_adapter.spec, values=previous)))
        moved = _norm_of_sum(change)
        change[1] = (1 + momentum - rate, global_adapter)
        terms = [(weight, adapter) for weight, adapter in change if weight]
        spec = global_adapter.spec
        best = products.combine(terms, into=spec, spare=global_adapter, out=previous)
        self._previous = kept
        return Step(adapter=best.state, tail=best.dropped / moved if moved else 0.0)

    def state(self) -> Mapping[str, Tensor]:
        return {} if self._previous is None else {"previous": self._previous}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._previous = state.get("previous")


class FactorMomentum:
    """Heavy ball on the values of the one factor that moves, for ``freeze-a`` and ``share-a``.

    ``velocity = momentum · velocity + update``, ``next = G + learning_rate · velocity``. With the
    other factor fixed this is momentum on the products too, and nothing is cut.

    The update's values are kept as the velocity.

    References:
        Hsu et al. 2019, arXiv:1909.06335 (FedAvgM).
    """

    def __init__(self, *, learning_rate: float, momentum: float) -> None:
        self._rate = learning_rate
        self._momentum = momentum
        self._velocity: Tensor | None = None

    def step(self, global_adapter: AdapterState, update: AdapterUpdate) -> Step:
        velocity = update.values
        if self._velocity is not None:
            _require_size(self._velocity, update)
            velocity.add_(self._velocity, alpha=self._momentum)
        self._velocity = velocity if self._momentum else None
        moved = velocity if self._rate == 1 else velocity * self._rate
        return Step(adapter=global_adapter.plus(replace(update, values=moved)), tail=0.0)

    def state(self) -> Mapping[str, Tensor]:
        return {} if self._velocity is None else {"velocity": self._velocity}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._velocity = state.get("velocity")


class Adaptive:
    """FedAdam and FedYogi: each value's step is scaled by the size of its past updates.

    Only where a value means the same in every round, which is where one factor is fixed. With u the
    round's update::

        m = β₁ m + (1 - β₁) u
        v = β₂ v + (1 - β₂) u²                      (adam)
        v = v - (1 - β₂) u² sign(v - u²)            (yogi)
        next = G + learning_rate · m / (√v + τ)

    β₁ is the recipe's momentum, β₂ 0.99 and τ 1e-3; m begins at 0, v at τ².

    References:
        Reddi et al. 2020, arXiv:2003.00295, algorithm 2.
    """

    SECOND_MOMENTUM = 0.99
    ADAPTIVITY = 1e-3

    def __init__(
        self, kind: Literal["adam", "yogi"], *, learning_rate: float, momentum: float
    ) -> None:
        self._kind = kind
        self._rate = learning_rate
        self._momentum = momentum
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def step(self, global_adapter: AdapterState, update: AdapterUpdate) -> Step:
        first, second = self._first, self._second
        if first is None or second is None:
            first = torch.zeros_like(update.values)
            second = torch.full_like(update.values, self.ADAPTIVITY**2)
        _require_size(first, update)
        first.lerp_(update.values, 1 - self._momentum)
        square, new = update.values.square_(), 1 - self.SECOND_MOMENTUM
        if self._kind == "adam":
            second.lerp_(square, new)
        else:
            second.addcmul_((second - square).sign_(), square, value=-new)
        self._first, self._second = first, second
        scale = torch.sqrt(second, out=update.values).add_(self.ADAPTIVITY)
        torch.div(first, scale, out=update.values).mul_(self._rate)
        return Step(adapter=global_adapter.plus(update), tail=0.0)

    def state(self) -> Mapping[str, Tensor]:
        if self._first is None or self._second is None:
            return {}
        return {"first": self._first, "second": self._second}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._first, self._second = state.get("first"), state.get("second")


def _moved(global_adapter: AdapterState, update: AdapterUpdate) -> AdapterState:
    """Return the global adapter plus the update, in the update's memory where it is large enough.

    Raises:
        AdapterError: the update is of another adapter.
    """
    rank = update.spec.rank
    if update.spec.digest != global_adapter.spec.part(rank=rank).digest:
        return global_adapter.plus(update)
    if rank < global_adapter.spec.rank:
        return global_adapter.plus(update)
    moved = AdapterState(spec=update.spec, values=update.values)
    for values, into in overlap(global_adapter, moved):
        into.add_(values)
    return moved


def _norm_of_sum(terms: Sequence[tuple[float, AdapterState]]) -> float:
    """Return the Frobenius norm of a weighted sum of products, 0 where it is but rounding."""
    square = largest = 0.0
    for index, (weight, term) in enumerate(terms):
        own = weight**2 * products.inner(term, term)
        crossed = (other * products.inner(term, later) for other, later in terms[index + 1 :])
        square += own + 2 * weight * math.fsum(crossed)
        largest = max(largest, own)
    return math.sqrt(square) if square > _UNNOTICED**2 * largest else 0.0


def _require_size(moment: Tensor, update: AdapterUpdate) -> None:
    if moment.shape != update.values.shape:
        raise AdapterError(
            f"The server optimiser remembers {moment.numel()} values, but the update has "
            f"{update.spec.size}: resume with the method and ranks that the run began with."
        )
