"""Inner products, norms and distances of products, and their balanced factors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.errors import AdapterError
from fedlora.products.spread import Workspace, spread


def inner(a: AdapterState, b: AdapterState) -> float:
    """Return the Frobenius inner product of two adapters' products.

    The adapters may be of any ranks and alphas; a module that one lacks counts as zero. A head
    counts by its own values.

    Raises:
        AdapterError: they are of different bases, or a module's shapes differ.
    """
    return math.fsum(inner_by_module(a, b).values())


def inner_by_module(a: AdapterState, b: AdapterState) -> dict[str, float]:
    """Return the inner product of two adapters' products on each module that both have.

    A head is listed by its own name.

    Raises:
        AdapterError: as ``inner``.
    """
    require_base(a.spec, b.spec)
    lefts = _products(a)
    rights = lefts if a is b else _products(b)
    scaling = a.spec.scaling * b.spec.scaling
    inners = {module: scaling * value for module, value in _inners(lefts, rights).items()}
    return inners | _head_inners(a, b)


def norm(a: AdapterState) -> float:
    """Return the Frobenius norm of an adapter's products."""
    return math.sqrt(max(0.0, inner(a, a)))


def distance(a: AdapterState, b: AdapterState) -> float:
    """Return the Frobenius norm of the difference of two adapters' products.

    Its error is about 1e-8 of the larger norm, since squares are subtracted; for what updates
    change, take ``change_inner``.

    Raises:
        AdapterError: as ``inner``.
    """
    return math.sqrt(max(0.0, inner(a, a) - 2 * inner(a, b) + inner(b, b)))


def change_inner(received: AdapterState, u: AdapterUpdate, v: AdapterUpdate) -> float:
    """Return the inner product of the changes that two updates make to an adapter's products.

    The change of ``scaling * B @ A`` is ``scaling * (ΔB @ (A + ΔA) + B @ ΔA)``: however small the
    update, nothing cancels. The change of a head is its update.

    Args:
        received: the adapter that both are updates of.
        u: of the whole adapter or of a part; a factor that it lacks does not change.
        v: likewise; it may be ``u``.

    Raises:
        AdapterError: an update is of another base, has another scaling, or a factor or a shape that
            ``received`` has not.
    """
    lefts = _changes(received, u)
    rights = lefts if u is v else _changes(received, v)
    factors = received.spec.scaling**2 * math.fsum(_inners(lefts, rights).values())
    return factors + math.fsum(_head_inners(u, v).values())


def balanced(state: AdapterState) -> AdapterState:
    """Return the adapter with ``‖b_k‖ = ‖a_k‖`` for each component k of each module.

    Guarantees:
        The products stay the same. A component of which one side is zero stays as it is, since it
        could not be trained if both were.
    """
    result = AdapterState(spec=state.spec, values=state.values.clone())
    for _, down, up in result.pairs():
        rows = torch.linalg.vector_norm(down, dim=1, dtype=torch.float64)
        columns = torch.linalg.vector_norm(up, dim=0, dtype=torch.float64)
        ratio = torch.where((rows > 0) & (columns > 0), (columns / rows).sqrt(), 1.0)
        down.copy_(down * ratio[:, None])
        up.copy_(up / ratio)
    return result


def require_base(spec: AdapterSpec, other: AdapterSpec) -> None:
    """Do nothing if both are adapters of the same base model.

    Raises:
        AdapterError: they are not.
    """
    if spec.base_digest != other.base_digest:
        raise AdapterError(
            f"Adapters of one base model were expected, but they are of {spec.base_model} "
            f"({spec.base_digest[:12]}) and {other.base_model} ({other.base_digest[:12]})."
        )


@dataclass(frozen=True, kw_only=True)
class _Product:
    """``up @ (down + plus)``; where these have fewer rows than ``up`` has columns, zeros follow."""

    up: Tensor
    down: Tensor
    plus: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two sums of products on one module, whose inner product is asked for."""

    module: str
    left: Sequence[_Product]
    right: Sequence[_Product]

    @property
    def size(self) -> int:
        return sum(product.up.numel() + product.down.numel() for product in self.left)


def _products(state: AdapterState) -> dict[str, list[_Product]]:
    return {module: [_Product(up=up, down=down)] for module, down, up in state.pairs()}


def _changes(received: AdapterState, update: AdapterUpdate) -> dict[str, list[_Product]]:
    """Return what an update changes, over the scaling: ``ΔB (A + ΔA)`` and ``B ΔA``."""
    require_base(received.spec, update.spec)
    if not math.isclose(received.spec.scaling, update.spec.scaling):
        raise AdapterError(
            f"An update of an adapter of scaling {received.spec.scaling:g} was expected, but its "
            f"scaling is {update.spec.scaling:g}."
        )
    places = {tensor.name: tensor for tensor in received.spec.tensors}
    for tensor in update.spec.tensors:
        place = places.get(tensor.name)
        if place is None or place.with_rank(update.spec.rank) != tensor:
            raise AdapterError(f"{tensor.name} of shape {tensor.shape} has no counterpart.")
    deltas = {tensor.name: values for tensor, values in update.factors()}
    shared = min(received.spec.rank, update.spec.rank)
    changes: dict[str, list[_Product]] = {}
    for module, a, b in received.pairs():
        down, up = deltas.get(f"{module}.lora_A"), deltas.get(f"{module}.lora_B")
        products = []
        if up is not None:
            products.append(_Product(up=up, down=a[:shared], plus=down))
        if down is not None:
            products.append(_Product(up=b[:, :shared], down=down[:shared]))
        if products:
            changes[module] = products
    return changes


def _head_inners(
    a: AdapterState | AdapterUpdate, b: AdapterState | AdapterUpdate
) -> dict[str, float]:
    """Return the inner product of the values of each head that both have."""
    rights = dict(b.heads())
    inners = {}
    for name, values in a.heads():
        other = rights.get(name)
        if other is None:
            continue
        if values.shape != other.shape:
            raise AdapterError(
                f"{name}: heads of one shape were expected, but they are {tuple(values.shape)} and "
                f"{tuple(other.shape)}."
            )
        inners[name] = float(values.double().flatten() @ other.double().flatten())
    return inners


def _inners(
    lefts: Mapping[str, Sequence[_Product]], rights: Mapping[str, Sequence[_Product]]
) -> dict[str, float]:
    pairs = [
        _Pair(module=module, left=left, right=rights[module])
        for module, left in lefts.items()
        if module in rights
    ]
    for pair in pairs:
        shape, other = pair.left[0].shape, pair.right[0].shape
        if shape != other:
            raise AdapterError(
                f"{pair.module}: products of one shape were expected, but they are {shape} and "
                f"{other}."
            )
    values = spread(_inner_of_pair, pairs)
    return {pair.module: value for pair, value in zip(pairs, values, strict=True)}


def _inner_of_pair(pair: _Pair, workspace: Workspace) -> float:
    """Return ``⟨B A, D C⟩ = Σ (Bᵀ D) ∘ (A Cᵀ)``."""
    up, down = _stacked(pair.left, workspace, side="left")
    same = pair.right is pair.left
    other_up, other_down = (up, down) if same else _stacked(pair.right, workspace, side="right")
    return float(((up.T @ other_up) * (down @ other_down.T)).sum())


def _stacked(
    products: Sequence[_Product], workspace: Workspace, *, side: str
) -> tuple[Tensor, Tensor]:
    """Return B, ``(out, R)``, and A, ``(R, in)``, whose product is the sum of ``products``."""
    ranks = [product.up.shape[1] for product in products]
    up = workspace.matrix(f"{side} up", len(products[0].up), sum(ranks))
    down = workspace.matrix(f"{side} down", sum(ranks), products[0].down.shape[1])
    parts = zip(products, up.split(ranks, dim=1), down.split(ranks), strict=True)
    for product, columns, rows in parts:
        columns.copy_(product.up)
        rows[: len(product.down)].copy_(product.down)
        rows[len(product.down) :].zero_()
        if product.plus is not None:
            rows.add_(product.plus)
    return up, down
