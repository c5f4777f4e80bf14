"""The best adapter of a rank for a weighted sum of adapters' products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import AdapterError
from fedlora.products.algebra import require_base
from fedlora.products.approximation import best_approximation
from fedlora.products.spread import Workspace, spread


@dataclass(frozen=True, kw_only=True, eq=False)
class Combined:
    """The best adapter of a rank for a weighted sum of products."""

    state: AdapterState
    norm: float
    """Frobenius norm of the sum, over all modules."""
    dropped: float
    """Frobenius norm of what the adapter lacks of the sum, but for rounding to float32."""


def combine(
    terms: Sequence[tuple[float, AdapterState]],
    *,
    into: AdapterSpec,
    spare: AdapterState | None = None,
    out: Tensor | None = None,
) -> Combined:
    """Return the best adapter of rank ``into.rank`` for ``Σ weight · scaling · B @ A``.

    Of a head it has ``Σ weight · head``.

    Args:
        terms: weights, of any sign, and adapters, of any ranks and alphas. A module that an adapter
            lacks counts as zero, and so does a head.
        into: the modules, the rank and the alpha of the result.
        spare: an adapter whose rows of A are put where the result's components are zero, so that
            they can still be trained. Without it, such rows are zero.
        out: ``(into.size,)`` float32 to write the result to. It may be the values of a term or of
            ``spare``, if their factors have the ranks and the order of ``into``.

    Guarantees:
        - The result is at most 1e-6 of the sum's norm farther from the sum than the best possible.
        - Its components are in descending order: orthogonal columns of B, orthonormal rows of A.
          Where a component is zero, its column of B is.
        - Beyond the result, memory is that of a few modules of the terms for each thread.
        - The same call gives the same bits on the same machine and number of threads.

    Raises:
        AdapterError: a term is of another base, has a module or a shape that ``into`` has not, a
            weight or a value is not finite, or ``out`` is of another size or in the way of a term.

    References:
        Eckart and Young 1936, doi:10.1007/BF02288367; for LoRA, Bai et al. 2024, arXiv:2402.11505.
    """
    values = torch.empty(into.size) if out is None else out
    state = AdapterState(spec=into, values=values)
    sums = _sums(terms, state, spare)
    squares = [*_combine_heads(terms, state), *spread(_combine_module, sums)]
    return Combined(
        state=state,
        norm=math.sqrt(math.fsum(total for total, _ in squares)),
        dropped=math.sqrt(math.fsum(dropped for _, dropped in squares)),
    )


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """One module of the sum, and where its result goes."""

    module: str
    scaling: float
    down: Tensor
    """``(rank, in)``: the result's A."""
    up: Tensor
    """``(out, rank)``: the result's B."""
    spare: Tensor
    """``(any, in)``: further rows for A."""
    weights: list[float] = field(default_factory=list)
    downs: list[Tensor] = field(default_factory=list)
    ups: list[Tensor] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.down.shape[1] + self.up.shape[0]

    def add(self, weight: float, *, down: Tensor, up: Tensor) -> None:
        shape, expected = ((b.shape[0], a.shape[1]) for b, a in ((up, down), (self.up, self.down)))
        if shape != expected:
            raise AdapterError(
                f"{self.module}: a product of shape {expected} was expected, but it is {shape}."
            )
        self.weights.append(weight)
        self.downs.append(down)
        self.ups.append(up)


def _sums(
    terms: Sequence[tuple[float, AdapterState]], state: AdapterState, spare: AdapterState | None
) -> list[_Sum]:
    rows = {module: down for module, down, _ in spare.pairs()} if spare else {}
    sums = {
        module: _Sum(
            module=module,
            scaling=state.spec.scaling,
            down=down,
            up=up,
            spare=rows.get(module, down[:0]),
        )
        for module, down, up in state.pairs()
    }
    for weight, term in _merged(terms):
        require_base(state.spec, term.spec)
        if not math.isfinite(weight):
            raise AdapterError(f"A weight must be finite, but it is {weight}.")
        for module, down, up in term.pairs():
            if module not in sums:
                raise AdapterError(f"{module} is adapted by a term, but has no place in the sum.")
            sums[module].add(weight * term.spec.scaling, down=down, up=up)
    for source in [term for _, term in terms] + ([spare] if spare else []):
        _require_apart(state, source)
    return list(sums.values())


def _combine_heads(
    terms: Sequence[tuple[float, AdapterState]], state: AdapterState
) -> list[tuple[float, float]]:
    """Write each head's sum; return its squared norm, and zero for what was dropped of it."""
    found = [(weight, dict(term.heads())) for weight, term in _merged(terms)]
    places = dict(state.heads())
    for name in {name for _, heads in found for name in heads}:
        shapes = {tuple(heads[name].shape) for _, heads in found if name in heads}
        if name not in places or shapes != {tuple(places[name].shape)}:
            raise AdapterError(f"{name} of shape {min(shapes)} has no place in the sum.")
    squares = []
    for name, into in places.items():
        total = torch.zeros(into.shape, dtype=torch.float64)
        for weight, heads in found:
            if name in heads:
                total.add_(heads[name], alpha=weight)
        squares.append((float(total.square().sum()), 0.0))
        into.copy_(total)
    return squares


def _merged(
    terms: Sequence[tuple[float, AdapterState]],
) -> list[tuple[float, AdapterState]]:
    """Return the sum with each adapter once: two that cancel would cost the more careful way."""
    merged: dict[int, tuple[float, AdapterState]] = {}
    for weight, term in terms:
        merged[id(term)] = (weight + merged.get(id(term), (0.0,))[0], term)
    return list(merged.values())


def _require_apart(state: AdapterState, source: AdapterState) -> None:
    """Refuse a source that would be overwritten before it is read.

    One with the factors in the same places is fine: each module is read before it is written.
    """
    start, other = state.values.data_ptr(), source.values.data_ptr()
    if start == other and state.spec.tensors == source.spec.tensors:
        return
    width = state.values.element_size()
    if start < other + source.spec.size * width and other < start + state.spec.size * width:
        raise AdapterError(
            "out overlaps a term whose factors lie in other places: take memory of its own."
        )


def _combine_module(job: _Sum, workspace: Workspace) -> tuple[float, float]:
    """Write one module's result; return the squared norms of the sum and of what was dropped."""
    (rank, inputs), outputs = job.down.shape, job.up.shape[0]
    ranks = [len(down) for down in job.downs]
    a = workspace.matrix("a", sum(ranks), inputs)
    b = workspace.matrix("b", outputs, sum(ranks))
    for rows, down in zip(a.split(ranks), job.downs, strict=True):
        rows.copy_(down)
    for columns, up in zip(b.split(ranks, dim=1), job.ups, strict=True):
        columns.copy_(up)
    weights = torch.tensor(job.weights, dtype=torch.float64)
    weights = weights.repeat_interleave(torch.tensor(ranks, dtype=torch.int64))
    best = best_approximation(a, b, weights, rank=rank)
    kept = best.left.shape[1]
    right, left = workspace.matrix("right", kept, inputs), workspace.matrix("left", kept, outputs)
    torch.mm(best.right, a, out=right)
    # Transposed, since MKL multiplies a wide matrix with a narrow one at half the speed.
    torch.mm(best.left.T / job.scaling, b.T, out=left)
    spare = job.spare[kept:rank].clone()
    job.down.zero_()
    job.down[:kept] = right
    job.down[kept : kept + len(spare)] = spare
    job.up[:, :kept] = left.T
    job.up[:, kept:] = 0
    return best.total, best.dropped
