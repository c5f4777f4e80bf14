"""Arithmetic of products, against dense matrices."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora import products
from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.tensors import KINDS as TENSOR_KINDS
from tests.oracles import dense_products, nearest_adapter
from tests.strategies import HEADS, make_spec, make_state

KINDS = ["plain", "duplicate", "near duplicate", "decaying", "zero factor", "zero column", "bf16"]
MODULES = st.dictionaries(
    st.sampled_from(["q", "k", "v"]),
    st.tuples(st.integers(1, 16), st.integers(1, 16)) | st.just((48, 64)),
    min_size=1,
)
WEIGHTS = st.sampled_from([1.0, -1.0, 0.0]) | st.floats(1e-6, 2) | st.floats(-2, -1e-6)
SEEDS = st.integers(0, 2**32)


@st.composite
def clients(
    draw: st.DrawFn, modules: dict[str, tuple[int, int]], *, before: list[AdapterState]
) -> AdapterState:
    """Adapters of any rank and alpha, in any gauge, some hard to tell from one ``before``."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    rank, alpha = draw(st.integers(1, 12)), draw(st.floats(0.1, 64))
    spec = make_spec(rank=rank, alpha=alpha, modules=modules, heads=HEADS)
    values, kind = torch.randn(spec.size, generator=generator), draw(st.sampled_from(KINDS))
    if kind.endswith("duplicate") and before:
        like = draw(st.sampled_from(before))
        spec, values = like.spec, like.values.clone()
        if kind == "near duplicate":
            noise = torch.randn(spec.size, generator=generator)
            values.addcmul_(values, noise, value=draw(st.sampled_from([1e-2, 1e-4, 1e-7])))
    state = AdapterState(spec=spec, values=values)
    gauge = 10 ** draw(st.floats(-3, 3))
    for _, down, up in state.pairs():
        if kind == "decaying":
            up.mul_(10 ** (-8 * torch.rand(spec.rank, generator=generator)))
        if kind == "zero factor":
            draw(st.sampled_from([down, up])).zero_()
        if kind == "zero column":
            up[:, -1] = 0
        each = gauge ** torch.rand(spec.rank, generator=generator)
        down.mul_(each[:, None])
        up.div_(each)
    return state if kind != "bf16" else AdapterState(spec=spec, values=values.bfloat16().float())


@st.composite
def sums(draw: st.DrawFn) -> tuple[list[tuple[float, AdapterState]], AdapterSpec]:
    """Weighted sums of adapters, and what they are to be combined into."""
    modules, states = draw(MODULES), []
    for _ in range(draw(st.integers(1, 8))):
        states.append(draw(clients(modules, before=states)))
    rank, alpha = draw(st.integers(1, 16)), draw(st.floats(0.1, 64))
    into = make_spec(rank=rank, alpha=alpha, modules=modules, heads=HEADS)
    return [(draw(WEIGHTS), state) for state in states], into


@st.composite
def pairs_of_updates(draw: st.DrawFn) -> tuple[AdapterState, list[AdapterUpdate]]:
    """An adapter and two updates of any factors, ranks and size."""
    modules, scaling = draw(MODULES), draw(st.floats(0.1, 8))
    rank = draw(st.integers(1, 6))
    spec = make_spec(rank=rank, alpha=scaling * rank, modules=modules, heads=HEADS)
    received, updates = make_state(spec, seed=draw(SEEDS)), []
    for _ in range(2):
        kinds = draw(
            st.sampled_from(["A", "B", "AB", ("B", "head"), ("head",), tuple(TENSOR_KINDS)])
        )
        part = spec.part(kinds, rank=draw(st.integers(1, 8)))
        size = draw(st.sampled_from([1.0, 1e-3, 1e-6]))
        values = make_state(part, seed=draw(SEEDS)).values * size
        updates.append(AdapterUpdate(spec=part, values=values, num_examples=1))
    return received, updates


def dense_sum(terms: list[tuple[float, AdapterState]]) -> dict[str, torch.Tensor]:
    """Return the weighted sum of the products of adapters on the same modules."""
    dense = [(weight, dense_products(state)) for weight, state in terms]
    return {module: sum(weight * each[module] for weight, each in dense) for module in dense[0][1]}


def dense_change(received: AdapterState, update: AdapterUpdate) -> dict[str, torch.Tensor]:
    """Return what an update changes in each product, by the product's definition in float64."""
    rank = max(received.spec.rank, update.spec.rank)
    before = {
        tensor.name: values.double()
        for tensor, values in received.part(received.spec.part(rank=rank)).factors()
    }
    after = {name: values.clone() for name, values in before.items()}
    for tensor, values in update.factors():
        after[tensor.name][tuple(map(slice, tensor.shape))] += values
    heads = {name: after[name] - before[name] for name, _ in received.heads()}
    return heads | {
        module: received.spec.scaling
        * (
            after[f"{module}.lora_B"] @ after[f"{module}.lora_A"]
            - before[f"{module}.lora_B"] @ before[f"{module}.lora_A"]
        )
        for module, _, _ in received.pairs()
    }


def norm_of(dense: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(matrix.square().sum()) for matrix in dense.values()))


def inner_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[module] * other[module]).sum()) for module in one)


@given(case=sums())
def test_combination_is_the_best_of_its_rank(case):
    """No adapter of the rank is nearer to the sum by more than 1e-6 of the sum's norm."""
    terms, into = case
    exact, rounding = dense_sum(terms), 1e-11 * sum(abs(w) * products.norm(t) for w, t in terms)
    best = nearest_adapter(make_state(into), exact)
    optimum = norm_of({module: exact[module] - best[module] for module in exact})

    combined = products.combine(terms, into=into)
    found = dense_products(combined.state)

    distance = norm_of({module: exact[module] - found[module] for module in exact})
    allowed = 1e-6 * norm_of(exact) + rounding
    assert distance <= optimum + allowed
    assert combined.norm == pytest.approx(norm_of(exact), rel=1e-6, abs=rounding)
    assert combined.dropped == pytest.approx(optimum, abs=allowed)


@given(case=sums())
def test_combination_is_in_its_gauge(case):
    """Rows of A are orthogonal and of one norm, columns of B orthogonal, descending, or zero."""
    terms, into = case

    for _, down, up in products.combine(terms, into=into).state.pairs():
        columns = torch.linalg.vector_norm(up.double(), dim=0)
        kept = int((columns > 0).sum())
        rows = down[:kept].double()
        directions = up[:, :kept].double() / columns[:kept]
        assert columns.tolist() == pytest.approx(columns.sort(descending=True)[0].tolist())
        assert not down[kept:].any()
        assert torch.allclose(rows @ rows.T, torch.eye(kept, dtype=torch.float64), atol=1e-4)
        assert torch.allclose(
            directions.T @ directions, torch.eye(kept, dtype=torch.float64), atol=1e-4
        )


@given(data=st.data(), modules=MODULES)
def test_inner_products_are_those_of_dense_matrices(data, modules):
    """So are norms and distances, whatever the ranks, alphas and gauges."""
    one = data.draw(clients(modules, before=[]))
    other = data.draw(clients(modules, before=[one]))
    dense, against = dense_products(one), dense_products(other)
    scale = norm_of(dense) + norm_of(against)

    assert products.norm(one) == pytest.approx(norm_of(dense), rel=1e-9)
    assert products.inner(one, other) == pytest.approx(
        inner_of(dense, against), abs=1e-12 * scale**2
    )
    gap = norm_of({module: dense[module] - against[module] for module in dense})
    assert products.distance(one, other) == pytest.approx(gap, abs=1e-6 * scale)


@given(case=pairs_of_updates())
def test_inner_products_of_changes_are_those_of_dense_matrices(case):
    """However small the updates, whatever part of the adapter they are of."""
    received, (one, other) = case
    dense, against = dense_change(received, one), dense_change(received, other)

    found = products.change_inner(received, one, other)

    rounding = 1e-14 * products.norm(received) * (norm_of(dense) + norm_of(against))
    tolerance = 1e-9 * norm_of(dense) * norm_of(against) + rounding
    assert found == pytest.approx(inner_of(dense, against), abs=tolerance)


@given(data=st.data(), modules=MODULES)
def test_balancing_keeps_the_products(data, modules):
    """Each component's two norms become equal, unless one of them is zero."""
    state = data.draw(clients(modules, before=[]))
    balanced = products.balanced(state)

    exact = dense_products(state)
    for module, matrix in dense_products(balanced).items():
        assert torch.allclose(matrix, exact[module], rtol=1e-5, atol=1e-6 * norm_of(exact))
    for _, down, up in balanced.pairs():
        rows, columns = down.norm(dim=1), up.norm(dim=0)
        alive = (rows > 0) & (columns > 0)
        assert torch.allclose(rows[alive], columns[alive], rtol=1e-5)
