"""Finished adapters combined into one, without a federation and without the base model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedlora import products
from fedlora.adapter import AdapterSpec, AdapterState, TensorSpec
from fedlora.errors import AdapterError
from fedlora.methods import OfflineMethod

Terms = Sequence[tuple[float, AdapterState]]

_ZERO = 1e-7
"""Norm of a sum, over the norms of its terms, below which it is but float32's rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ingredient:
    """One of the adapters to combine."""

    name: str
    """What messages call it, such as its folder."""
    weight: float
    """It counts relative to the sum of all weights, and may be negative."""
    state: AdapterState


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """An adapter made of others, and how far it is from their weighted mean."""

    state: AdapterState
    weights: tuple[float, ...]
    """Of the ingredients; their sum is 1."""
    norms: tuple[float, ...]
    """Frobenius norm of each ingredient's products, over all modules."""
    error: float
    """``‖result - mean‖_F / ‖mean‖_F`` of the products; infinite if the mean alone is zero. Below
    1e-6 it is the rounding to float32."""
    exact_rank: int
    """Rank that is enough for the mean itself."""


def combine(
    ingredients: Sequence[Ingredient], *, method: OfflineMethod = "product", rank: int | None = None
) -> Mixture:
    """Return one adapter for the weighted mean of products, ``Σ wᵢ scalingᵢ Bᵢ Aᵢ / Σ wᵢ``.

    - ``product``: the best adapter of ``rank`` (Eckart and Young 1936); by default the largest rank
      of an ingredient.
    - ``average``: the mean of A and that of B (FedIT, Zhang et al. 2023, arXiv:2305.05644, section
      3.2), for ingredients of one rank and alpha on the same modules. It misses the mean of the
      products, by ``error``.
    - ``concat``: the factors stacked (FLoRA, Wang et al. 2024, arXiv:2409.05976, section 3.2). The
      rank is the sum of the ranks, and the mean is met exactly.

    A module that an ingredient lacks counts as zero. Of heads it is the mean of their values, and
    all must have the same, for the same labels in the same order. Base model and scaling of the
    result are the first ingredient's.

    Raises:
        AdapterError: the ingredients cannot be combined, or not by this method or to this rank.
    """
    weights = _relative([ingredient.weight for ingredient in ingredients])
    spec = _union(ingredients)
    terms = [(weight, one.state) for weight, one in zip(weights, ingredients, strict=True)]
    ranks = [state.spec.rank for _, state in terms]
    full = _full_rank(spec)
    _require_rank(rank, method=method, most=max(*ranks, full))
    if method == "product":
        best = products.combine(terms, into=spec.part(rank=rank or max(ranks)))
        state, mean, missing = best.state, best.norm, best.dropped
    else:
        if method == "average":
            _require_alike(ingredients)
            state = _average(terms, into=spec)
        else:
            state = _concat(terms, into=spec.part(rank=sum(ranks)))
        mean = products.combine(terms, into=spec.part(rank=1)).norm
        missing = _distance(terms, state, norm=mean)
    if not state.is_finite():
        raise AdapterError("The result leaves the range of float32: smaller weights are needed.")
    norms = tuple(products.norm(term) for _, term in terms)
    zero = _ZERO * sum(abs(weight) * norm for weight, norm in zip(weights, norms, strict=True))
    return Mixture(
        state=state,
        weights=weights,
        norms=norms,
        error=missing / mean if mean > zero else math.inf if missing > zero else 0.0,
        exact_rank=min(sum(ranks), full),
    )


def _distance(terms: Terms, state: AdapterState, *, norm: float) -> float:
    """Return how far an adapter's products are from a sum of products that has this norm."""
    inner = sum(weight * products.inner(term, state) for weight, term in terms)
    return math.sqrt(max(0.0, norm**2 - 2 * inner + products.inner(state, state)))


def _relative(weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weights over their sum."""
    total = sum(weights)
    if not (0 < total < math.inf and all(math.isfinite(weight / total) for weight in weights)):
        raise AdapterError(
            "Finite weights with a positive sum were expected, but they are "
            f"{', '.join(f'{weight:g}' for weight in weights)}."
        )
    return tuple(weight / total for weight in weights)


def _union(ingredients: Sequence[Ingredient]) -> AdapterSpec:
    """Return the first ingredient's specification with the modules of all.

    Raises:
        AdapterError: the base models or the shapes of a module differ.
    """
    first = ingredients[0]
    spec = first.state.spec
    base = spec.base_model, spec.base_model_revision
    found: dict[str, tuple[TensorSpec, Ingredient]] = {}
    for ingredient in ingredients:
        its = ingredient.state.spec
        if {head.name for head in its.heads} != {head.name for head in spec.heads}:
            raise AdapterError(
                f"{first.name} and {ingredient.name} do not have the same head: adapters of "
                "classifiers are combined with each other alone."
            )
        if (its.base_model, its.base_model_revision) != base:
            raise AdapterError(
                f"{first.name} and {ingredient.name} are adapters of different base models, "
                f"{_base(spec)} and {_base(its)}. If these are names of one model, say with "
                "--base-model which one to use."
            )
        for tensor in its.tensors:
            same, owner = found.setdefault(tensor.name, (tensor.with_rank(spec.rank), ingredient))
            if same != tensor.with_rank(spec.rank):
                raise AdapterError(
                    f"{owner.name} and {ingredient.name} are adapters of different base models: "
                    f"the shapes of {tensor.name} are {same.shape} and {tensor.shape}."
                )
    targets = {name for one in ingredients for name in one.state.spec.target_modules}
    return replace(
        spec,
        target_modules=tuple(sorted(targets)),
        tensors=tuple(sorted((tensor for tensor, _ in found.values()), key=_is_head)),
    )


def _is_head(tensor: TensorSpec) -> bool:
    return not tensor.is_factor


def _base(spec: AdapterSpec) -> str:
    revision = spec.base_model_revision
    return f"{spec.base_model!r:.80}" + (f" of revision {revision!r:.80}" if revision else "")


def _full_rank(spec: AdapterSpec) -> int:
    """Return the largest rank that the change to a weight can have."""
    sides: dict[str, int] = {}
    for tensor in spec.tensors:
        if tensor.kind.rank_axis is not None:
            side = tensor.shape[1 - tensor.kind.rank_axis]
            sides[tensor.module] = min(side, sides.get(tensor.module, side))
    return max(sides.values())


def _require_rank(rank: int | None, *, method: OfflineMethod, most: int) -> None:
    if rank is None:
        return
    if method != "product":
        raise AdapterError(
            f"Only product takes a rank, but {method} was given {rank}: the rank of average is "
            "that of its adapters; of concat it is the sum of theirs."
        )
    if not 1 <= rank <= most:
        raise AdapterError(f"A rank from 1 to {most} was expected, but it is {rank}.")


def _require_alike(ingredients: Sequence[Ingredient]) -> None:
    """Do nothing if all have the same rank, alpha and modules.

    Raises:
        AdapterError: one has others.
    """
    first, *others = ingredients
    mine = first.state.spec
    for other in others:
        its = other.state.spec
        if (its.rank, its.alpha) != (mine.rank, mine.alpha):
            reason = (
                f"{first.name} has rank {mine.rank} and alpha {mine.alpha:g}, {other.name} rank "
                f"{its.rank} and alpha {its.alpha:g}"
            )
        elif set(its.tensors) != set(mine.tensors):
            reason = f"{first.name} and {other.name} adapt different modules"
        else:
            continue
        raise AdapterError(
            f"average takes the mean of factors, which must be alike, but {reason}. Use product."
        )


def _average(terms: Terms, *, into: AdapterSpec) -> AdapterState:
    """Return the mean of the factors, A and B apart, summed in float64."""
    total = torch.zeros(into.size, dtype=torch.float64)
    for weight, term in terms:
        total.add_(term.arranged_as(into).values, alpha=weight)
    return AdapterState(spec=into, values=total.to(torch.float32))


def _concat(terms: Terms, *, into: AdapterSpec) -> AdapterState:
    """Return all factors stacked, with weights and scalings in B, and the mean of the heads."""
    state = AdapterState(spec=into, values=torch.zeros(into.size))
    for name, head in state.heads():
        weighted = [weight * dict(term.heads())[name].double() for weight, term in terms]
        head.copy_(torch.stack(weighted).sum(dim=0))
    places = {module: (down, up) for module, down, up in state.pairs()}
    start = 0
    for weight, term in terms:
        end = start + term.spec.rank
        factor = weight * term.spec.scaling / into.scaling
        for module, down, up in term.pairs():
            places[module][0][start:end] = down
            places[module][1][:, start:end] = up.double() * factor
        start = end
    return state
