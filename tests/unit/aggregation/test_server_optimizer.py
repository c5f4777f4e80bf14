"""The steps that the aggregator takes with a round's update."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState, AdapterUpdate
from fedlora.aggregation.server_optimizer import Adaptive, FactorMomentum, ProductMomentum
from fedlora.errors import AdapterError
from tests.oracles import dense_products, nearest_of_rank
from tests.strategies import make_spec, make_state, make_update

SPEC = make_spec(rank=3, alpha=6.0, modules={"m.q_proj": (12, 9), "m.up_proj": (8, 15)})
START = make_state(SPEC, seed=9)
PART = SPEC.part("B")


def update_of(spec: AdapterSpec, *, seed: int, scale: float = 0.1) -> AdapterUpdate:
    update = make_update(spec, seed=seed)
    update.values.mul_(scale)
    return update


def copy(state: AdapterState) -> AdapterState:
    return AdapterState(spec=state.spec, values=state.values.clone())


def stepped(optimizer, updates: Sequence[AdapterUpdate], start: AdapterState = START) -> list:
    """Return each step with a copy of its adapter, since an optimiser may use its memory again."""
    adapter, steps = copy(start), []
    for update in updates:
        given = AdapterUpdate(spec=update.spec, values=update.values.clone(), num_examples=1)
        step = optimizer.step(adapter, given)
        adapter = step.adapter
        steps.append((copy(adapter), step.tail))
    return steps


def size(matrices: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(matrix.square().sum()) for matrix in matrices.values()))


def minus(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    return {module: one[module] - other[module] for module in one}


@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (1.0, 0.5), (0.7, 0.0), (1.5, 0.9)])
@pytest.mark.parametrize("rank", [3, 6])
def test_product_momentum_is_heavy_ball_on_dense_matrices(rate, momentum, rank):
    """Each step is the nearest of its rank to the target, and its tail what the cut dropped."""
    updates = [update_of(SPEC.part(rank=rank), seed=seed) for seed in range(4)]
    optimizer = ProductMomentum(learning_rate=rate, momentum=momentum)
    before, now = START, START
    for update, (adapter, tail) in zip(updates, stepped(optimizer, updates), strict=True):
        outcome, g, g_before = map(dense_products, (now.plus(update), now, before))
        target = {m: g[m] + rate * (outcome[m] - g[m]) + momentum * (g[m] - g_before[m]) for m in g}
        nearest = {m: nearest_of_rank(matrix, SPEC.rank) for m, matrix in target.items()}
        assert adapter.spec == SPEC
        assert size(minus(dense_products(adapter), nearest)) < 1e-5 * size(g)
        dropped = size(minus(target, nearest)) / size(minus(target, g))
        assert tail == pytest.approx(dropped, abs=1e-4)
        assert 0 <= tail <= 1
        before, now = now, adapter


@pytest.mark.parametrize("factors", ["A", "B"])
def test_product_momentum_takes_an_update_of_one_factor(factors):
    """As ``alternate`` sends it; with momentum both factors turn."""
    optimizer = ProductMomentum(learning_rate=1.0, momentum=0.5)
    updates = [update_of(SPEC.part(factors), seed=seed) for seed in range(2)]
    (first, _), (second, tail) = stepped(optimizer, updates)
    assert torch.equal(first.values, START.plus(updates[0]).values)
    outcome, g, before = map(dense_products, (first.plus(updates[1]), first, START))
    target = {m: outcome[m] + 0.5 * (g[m] - before[m]) for m in g}
    nearest = {m: nearest_of_rank(matrix, SPEC.rank) for m, matrix in target.items()}
    assert size(minus(dense_products(second), nearest)) < 1e-5 * size(g)
    assert tail > 0


@pytest.mark.parametrize("part", [SPEC, PART, SPEC.part("A")])
def test_nothing_is_turned_that_need_not_be_cut(part):
    """Without momentum, or in its first step, an update of the adapter's rank is simply added."""
    update = update_of(part, seed=1)
    expected = START.plus(update).values
    for momentum in (0.0, 0.5):
        optimizer = ProductMomentum(learning_rate=1.0, momentum=momentum)
        (adapter, tail), *_ = stepped(optimizer, [update])
        assert torch.equal(adapter.values, expected)
        assert tail == 0


def test_a_wider_update_is_cut():
    """To the global rank, and the tail says how much of the change that cost."""
    update = update_of(SPEC.part(rank=6), seed=1)
    optimizer = ProductMomentum(learning_rate=1.0, momentum=0.0)
    [(adapter, tail)] = stepped(optimizer, [update])
    assert adapter.spec == SPEC
    assert 0 < tail < 1
    assert optimizer.state() == {}


def test_what_is_zero_can_still_be_trained():
    """A fresh adapter that nothing moved keeps its A, and a wider update of zero has no tail."""
    start = AdapterState.initial(SPEC, seed=1)
    nothing = AdapterUpdate(
        spec=SPEC.part(rank=6), values=torch.zeros(SPEC.part(rank=6).size), num_examples=1
    )
    optimizer = ProductMomentum(learning_rate=1.0, momentum=0.5)
    for adapter, tail in stepped(optimizer, [nothing, nothing], start):
        assert torch.equal(adapter.values, start.values)
        assert tail == 0


def test_no_change_has_no_tail():
    """Rounding to float32 is not counted as a change that was cut."""
    nothing = AdapterUpdate(
        spec=SPEC.part(rank=6), values=torch.zeros(SPEC.part(rank=6).size), num_examples=1
    )
    optimizer = ProductMomentum(learning_rate=1.0, momentum=0.5)
    expected = dense_products(START)
    for adapter, tail in stepped(optimizer, [nothing, nothing, nothing]):
        assert size(minus(dense_products(adapter), expected)) < 1e-5 * size(expected)
        assert tail == 0


def test_product_momentum_works_in_the_memory_that_it_has():
    """The adapter of two steps ago is written over; the one before is not."""
    optimizer = ProductMomentum(learning_rate=1.0, momentum=0.5)
    adapters = [copy(START)]
    for seed in range(4):
        update = update_of(SPEC.part(rank=6), seed=seed)
        before = adapters[-1].values.clone()
        adapters.append(optimizer.step(adapters[-1], update).adapter)
        assert torch.equal(adapters[-2].values, before)
    places = [adapter.values.data_ptr() for adapter in adapters]
    assert len(set(places)) == 2
    assert places[2:] == places[:-2]


@pytest.mark.parametrize(("rate", "momentum"), [(1.0, 0.0), (1.0, 0.5), (0.3, 0.9)])
def test_factor_momentum_is_heavy_ball_on_values(rate, momentum):
    """Of the one factor that moves; the other stays, bit for bit."""
    updates = [update_of(PART, seed=seed) for seed in range(4)]
    velocity = torch.zeros(PART.size, dtype=torch.float64)
    values = START.part(PART).values.double()
    steps = stepped(FactorMomentum(learning_rate=rate, momentum=momentum), updates)
    for update, (adapter, tail) in zip(updates, steps, strict=True):
        velocity = momentum * velocity + update.values
        values = values + rate * velocity
        torch.testing.assert_close(adapter.part(PART).values.double(), values)
        other = SPEC.part("A")
        assert torch.equal(adapter.part(other).values, START.part(other).values)
        assert tail == 0


def test_both_momentums_agree_where_one_factor_is_fixed():
    """On the products, until the other one turns the factors: the space does not matter then."""
    updates = [update_of(PART, seed=seed) for seed in range(2)]
    ours, theirs = (
        stepped(kind(learning_rate=1.0, momentum=0.5), updates)
        for kind in (FactorMomentum, ProductMomentum)
    )
    for (one, _), (other, tail) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(dense_products(one), dense_products(other), rtol=1e-5, atol=1e-5)
        assert tail < 1e-4
    assert not torch.equal(ours[1][0].values, theirs[1][0].values)


@pytest.mark.parametrize("kind", ["adam", "yogi"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adaptive_steps_follow_the_paper(kind, momentum):
    """Reddi et al., algorithm 2, one value at a time in plain Python."""
    updates = [update_of(PART, seed=seed, scale=10.0**-seed) for seed in range(4)]
    optimizer = Adaptive(kind, learning_rate=0.01, momentum=momentum)
    steps = stepped(optimizer, updates)
    for index in range(0, PART.size, 7):
        m, v = 0.0, 1e-6
        x = float(START.part(PART).values[index])
        for update, (adapter, tail) in zip(updates, steps, strict=True):
            delta = float(update.values[index])
            m = momentum * m + (1 - momentum) * delta
            sign = 1 if kind == "adam" else math.copysign(1, v - delta**2)
            v = 0.99 * v + 0.01 * delta**2 if kind == "adam" else v - 0.01 * delta**2 * sign
            x += 0.01 * m / (math.sqrt(v) + 1e-3)
            assert float(adapter.part(PART).values[index]) == pytest.approx(x, rel=1e-5)
            assert tail == 0


OPTIMIZERS = {
    "product": lambda: ProductMomentum(learning_rate=0.9, momentum=0.5),
    "factor": lambda: FactorMomentum(learning_rate=0.9, momentum=0.5),
    "adam": lambda: Adaptive("adam", learning_rate=0.01, momentum=0.5),
    "yogi": lambda: Adaptive("yogi", learning_rate=0.01, momentum=0.5),
}


@pytest.mark.parametrize("new", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_restored_optimizer_goes_on_bit_for_bit(new, cut):
    """Wherever it was stopped: the state is all that it remembers."""
    updates = [update_of(PART, seed=seed) for seed in range(5)]
    expected = stepped(new(), updates)
    first, second = new(), new()
    begun = stepped(first, updates[:cut])
    second.restore({name: values.clone() for name, values in first.state().items()})
    assert bool(first.state()) == bool(cut)
    resumed = stepped(second, updates[cut:], begun[-1][0] if begun else START)
    for (one, tail), (other, other_tail) in zip(begun + resumed, expected, strict=True):
        assert torch.equal(one.values, other.values)
        assert tail == other_tail


@pytest.mark.parametrize("new", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_restoring_nothing_forgets(new):
    """A run that begins anew has no velocity."""
    optimizer, updates = new(), [update_of(PART, seed=seed) for seed in range(2)]
    expected = stepped(new(), updates)
    stepped(optimizer, updates)
    optimizer.restore({})
    for (one, _), (other, _) in zip(stepped(optimizer, updates), expected, strict=True):
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("new", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_global_adapter_is_left_as_it_is(new):
    """A step makes a new one; only the step after may write over the old."""
    optimizer, start = new(), copy(START)
    optimizer.step(start, update_of(PART, seed=1))
    assert torch.equal(start.values, START.values)


@pytest.mark.parametrize("new", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("other", [make_spec(), make_spec(rank=3)], ids=["modules", "scaling"])
def test_an_update_of_another_adapter_is_refused(new, other):
    """Of other modules, or of another scaling."""
    with pytest.raises(AdapterError):
        new().step(copy(START), make_update(other))


@pytest.mark.parametrize("name", ["factor", "adam", "yogi"])
def test_a_state_of_another_method_is_refused(name):
    """Rather than broadcast or cut."""
    optimizer = OPTIMIZERS[name]()
    stepped(optimizer, [update_of(PART, seed=1)])
    with pytest.raises(AdapterError, match="the method and ranks that the run began with"):
        optimizer.step(copy(START), update_of(SPEC, seed=2))
