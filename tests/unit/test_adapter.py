"""Adapters as values: their specification, arithmetic and guards."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.errors import AdapterError
from tests.strategies import HEADS, MODULES, make_spec, make_state, make_update, specs, states


@given(specs())
def test_a_specification_survives_json(spec):
    """What is read back is equal and has the same digest."""
    again = AdapterSpec.from_json(spec.to_json())
    assert again == spec
    assert again.digest == spec.digest


@pytest.mark.parametrize(
    "other",
    [
        make_spec(rank=3),
        make_spec(alpha=5.0),
        make_spec(base_digest="cd" * 32),
        make_spec(modules=dict(reversed(MODULES.items()))),
        make_spec(modules={"model.layers.1.mlp.up_proj": (3, 4)}),
    ],
)
def test_adapters_of_other_specifications_do_not_mix(other):
    """Rank, alpha, base, modules and their order all tell specifications apart."""
    ours, theirs = make_state(), make_state(other)
    assert ours.spec.digest != other.digest
    with pytest.raises(AdapterError, match="different specifications"):
        ours.minus(theirs)


def test_factors_are_the_flat_vector_in_order():
    """The factors are views that follow one another, each row-major, and cover every value."""
    spec = make_spec()
    state = AdapterState(spec=spec, values=torch.arange(spec.size, dtype=torch.float32))
    factors = list(state.factors())
    assert [tensor.shape for tensor, _ in factors] == [(2, 3), (5, 2), (2, 3), (4, 2)]
    assert factors[0][0].name == "model.layers.0.self_attn.q_proj.lora_A"
    flat = torch.cat([values.flatten() for _, values in factors])
    assert torch.equal(flat, state.values)
    factors[1][1][0, 0] = -1
    assert state.values[6] == -1


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(3),
        torch.zeros(make_spec().size + 1),
        torch.zeros(make_spec().size, dtype=torch.float64),
        torch.zeros(make_spec().size, dtype=torch.bfloat16),
        torch.zeros(1, make_spec().size),
        torch.zeros(make_spec().size, device="meta"),
    ],
    ids=["short", "long", "float64", "bfloat16", "matrix", "elsewhere"],
)
@pytest.mark.parametrize("kind", [AdapterState, AdapterUpdate])
def test_values_of_another_size_type_or_place_are_refused(kind, values):
    """An adapter is one float32 vector on the CPU, as long as its specification says."""
    examples = {"num_examples": 1} if kind is AdapterUpdate else {}
    with pytest.raises(AdapterError, match=f"{make_spec().size} float32 values on the CPU"):
        kind(spec=make_spec(), values=values, **examples)


def test_the_initial_adapter_changes_nothing_and_comes_from_its_seed():
    """B is zero, A is within ±1/√in and spread, equal seeds give equal values."""
    spec = make_spec(rank=16, modules={"m": (64, 32)})
    state = AdapterState.initial(spec, seed=1)
    (_, a), (_, b) = state.factors()
    assert not b.any()
    assert a.abs().max() <= 1 / math.sqrt(64)
    # of a uniform variable on ±c the standard deviation is c/√3; 1024 values are within 10 %
    assert float(a.std()) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.1)
    assert torch.equal(state.values, AdapterState.initial(spec, seed=1).values)
    assert not torch.equal(state.values, AdapterState.initial(spec, seed=2).values)


def test_the_initial_adapter_leaves_the_global_generator_alone():
    """Randomness comes from the seed only."""
    before = torch.random.get_rng_state()
    AdapterState.initial(make_spec(), seed=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_trained_minus_received_leads_from_one_to_the_other():
    """The increment is elementwise, and adding it leaves the state it is added to unchanged."""
    received, trained = make_state(seed=1), make_state(seed=2)
    before = received.values.clone()
    update = AdapterUpdate(spec=received.spec, values=trained.minus(received), num_examples=1)
    assert torch.equal(trained.values - received.values, update.values)
    torch.testing.assert_close(received.plus(update).values, trained.values)
    assert torch.equal(before, received.values)


def test_the_norm_is_over_all_factors_in_double_precision():
    """The norm neither overflows nor loses small values beside many."""
    spec = make_spec()
    huge = AdapterState(spec=spec, values=torch.full((spec.size,), 1e30))
    assert huge.norm() == pytest.approx(1e30 * math.sqrt(spec.size), rel=1e-6)
    state = make_state()
    assert state.norm() == pytest.approx(math.sqrt(sum(v**2 for v in state.values.tolist())))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_noticed(bad):
    """Anywhere in the vector."""
    state = make_state()
    assert state.is_finite()
    state.values[-1] = bad
    assert not state.is_finite()


@given(data=st.data(), spec=specs())
def test_another_order_of_the_same_factors_can_be_arranged(data, spec):
    """Each factor keeps its values whatever order the other specification gives."""
    state = data.draw(states(spec))
    tensors = tuple(data.draw(st.permutations(spec.tensors)))
    other = AdapterSpec(**{**vars_of(spec), "tensors": tensors, "base_digest": "cd" * 32})
    arranged = state.arranged_as(other)
    assert arranged.spec is other
    values = dict(arranged.factors())
    assert all(torch.equal(values[tensor], factor) for tensor, factor in state.factors())


@pytest.mark.parametrize(
    "other",
    [
        make_spec(rank=3),
        make_spec(alpha=8.0),
        make_spec(modules={"model.layers.0.mlp.up_proj": (3, 4)}),
        make_spec(modules=MODULES | {"model.layers.0.mlp.down_proj": (4, 3)}),
        make_spec(modules=MODULES | {"model.layers.0.mlp.up_proj": (3, 6)}),
    ],
    ids=["rank", "alpha", "fewer modules", "more modules", "another shape"],
)
def test_other_factors_cannot_be_arranged(other):
    """Neither missing nor extra factors, nor other shapes or scalings, are accepted."""
    with pytest.raises(AdapterError, match="does not fit"):
        make_state().arranged_as(other)


def vars_of(spec: AdapterSpec) -> dict:
    return {name: getattr(spec, name) for name in spec.__dataclass_fields__}


@given(data=st.data(), spec=specs(), rank=st.integers(1, 6))
def test_padding_keeps_the_products(data, spec, rank):
    """A wider part has the same products, and its leading part is the adapter again."""
    state = data.draw(states(spec, floats=st.floats(-9, 9, width=32)))
    wide = spec.part(rank=max(rank, spec.rank))
    padded = state.part(wide)
    assert wide.scaling == pytest.approx(spec.scaling)
    for (_, a, b), (_, wide_a, wide_b) in zip(state.pairs(), padded.pairs(), strict=True):
        torch.testing.assert_close(b @ a, wide_b @ wide_a)
    assert torch.equal(state.values, padded.part(spec).values)


@pytest.mark.parametrize(("factors", "rank"), [("B", 2), ("A", 1), ("AB", 1), ("AB", 5)])
def test_an_update_is_added_to_the_part_that_it_is_of(factors, rank):
    """The part moves by the increment, the rest stays, and a wider update widens."""
    state = make_state(seed=1)
    part = state.spec.part(factors, rank=rank)
    update = make_update(part, seed=2)
    moved = state.plus(update)
    assert moved.spec.rank == max(rank, 2)
    torch.testing.assert_close(moved.part(part).minus(state.part(part)), update.values)
    rest = AdapterUpdate(spec=part, values=-update.values, num_examples=1)
    torch.testing.assert_close(moved.plus(rest).part(state.spec).values, state.values)


@pytest.mark.parametrize(
    "other",
    [
        make_spec(alpha=5.0),
        make_spec(base_digest="cd" * 32),
        make_spec(modules={"model.layers.1.mlp.up_proj": (3, 4)}),
        make_spec(modules=MODULES | {"model.layers.0.mlp.up_proj": (3, 6)}),
    ],
    ids=["scaling", "base", "another module", "another shape"],
)
def test_an_update_of_another_adapter_is_not_added(other):
    """Another scaling, base, module or shape is refused."""
    with pytest.raises(AdapterError, match=r"different bases or scalings|no counterpart"):
        make_state().plus(make_update(other))


def test_a_factor_without_its_partner_has_no_product():
    """Only pairs are products."""
    state = make_state()
    assert [module for module, _, _ in state.pairs()] == list(MODULES)
    with pytest.raises(AdapterError, match="only one of its two factors"):
        list(state.part(state.spec.part("B")).pairs())


WITH_HEAD = make_spec(heads=HEADS)


def test_no_rank_cuts_a_head():
    """A part has all of it, or, if its kind is not asked for, nothing."""
    for rank in (1, 2, 5):
        part = WITH_HEAD.part(rank=rank)
        assert {head.name: head.shape for head in part.heads} == HEADS
        assert WITH_HEAD.part("AB", rank=rank).heads == ()
    assert WITH_HEAD.part(("head",)).tensors == WITH_HEAD.heads
    assert WITH_HEAD.modules == tuple(MODULES)
    assert make_spec().heads == ()


def test_an_update_moves_the_head_whole():
    """Whatever the rank of the factors beside it."""
    state = make_state(WITH_HEAD, seed=1)
    update = make_update(WITH_HEAD.part(("B", "head"), rank=1), seed=2)
    moved, increments = dict(state.plus(update).heads()), dict(update.heads())
    for name, values in state.heads():
        torch.testing.assert_close(moved[name], values + increments[name])


def test_a_run_begins_with_a_drawn_head():
    """Matrices are uniform on ±1/√columns and vectors zero; A is as without a head."""
    wide = make_spec(heads={"dense.weight": (64, 100), "dense.bias": (64,)})
    state = AdapterState.initial(wide, seed=7)
    heads = dict(state.heads())
    assert heads["dense.weight"].abs().max() <= 0.1
    assert float(heads["dense.weight"].std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert not heads["dense.bias"].any()
    plain = AdapterState.initial(make_spec(), seed=7)
    assert torch.equal(state.part(plain.spec).values, plain.values)
    other = dict(AdapterState.initial(wide, seed=8).heads())
    assert not torch.equal(heads["dense.weight"], other["dense.weight"])


def test_heads_are_not_among_the_products():
    """But among all values."""
    state = make_state(WITH_HEAD)
    assert [module for module, _, _ in state.pairs()] == list(MODULES)
    assert [name for name, _ in state.heads()] == list(HEADS)
    assert state.norm() == pytest.approx(float(state.values.norm()))
