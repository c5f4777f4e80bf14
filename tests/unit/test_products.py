"""Arithmetic of products: what holds by example. ``tests/properties`` has what holds in general."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fedlora import products
from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.errors import AdapterError
from fedlora.products.spread import Workspace, spread
from tests.oracles import dense_products, nearest_of_rank
from tests.strategies import MODULES, make_spec, make_state

Q, UP = MODULES
MANY = {f"layer.{layer}": (24 + layer, 40 - layer) for layer in range(12)}


def assert_same_products(found: AdapterState, expected: dict[str, torch.Tensor]) -> None:
    """Compare with dense matrices, within the rounding to float32."""
    dense = dense_products(found)
    assert dense.keys() == expected.keys()
    for module, matrix in expected.items():
        assert torch.allclose(dense[module], matrix, rtol=1e-5, atol=1e-5)


def trained(*, clients: int, seed: int) -> list[AdapterState]:
    """Return what clients made of a common adapter: increments of a third of its factors' size."""
    generator = torch.Generator().manual_seed(seed)
    spec = make_spec(rank=8, alpha=16.0, modules={"q": (96, 128), "up": (128, 64)})
    common = AdapterState.initial(spec, seed=seed)
    importance = 1.3 ** -torch.arange(8)

    def noise(factor: str, shape: tuple[int, int]) -> torch.Tensor:
        values = torch.randn(shape, generator=generator)
        return values * (importance if factor == "B" else 0.05)

    for tensor, values in common.factors():
        if tensor.factor == "B":
            values.copy_(noise("B", tensor.shape))
    states = [AdapterState(spec=spec, values=common.values.clone()) for _ in range(clients)]
    for state in states:
        for tensor, values in state.factors():
            values.add_(noise(tensor.factor, tensor.shape), alpha=0.3)
    return states


@pytest.mark.parametrize("seed", range(5))
def test_streamed_clients_are_combined_almost_as_well_as_all_at_once(seed):
    """One client at a time, with twice the rank retained, costs at most 0.2 % of the error."""
    states = trained(clients=12, seed=seed)
    spec = states[0].spec
    wide = spec.part(rank=2 * spec.rank)
    mean = AdapterState(spec=wide, values=torch.zeros(wide.size))
    for number, state in enumerate(states, start=1):
        terms = [(1 - 1 / number, mean), (1 / number, state)]
        products.combine(terms, into=wide, out=mean.values)

    found = dense_products(products.combine([(1.0, mean)], into=spec).state)
    dense = [dense_products(state) for state in states]
    error = optimum = 0.0
    for module in found:
        exact = sum(each[module] for each in dense) / len(states)
        error += float((exact - found[module]).square().sum())
        optimum += float((exact - nearest_of_rank(exact, spec.rank)).square().sum())

    assert optimum > 0
    assert math.sqrt(error) <= 1.002 * math.sqrt(optimum)


def test_an_adapter_combined_with_itself_is_itself():
    """Half and half of an adapter has the same products, and nothing is dropped."""
    state = make_state()
    twin = AdapterState(spec=state.spec, values=state.values.clone())

    for terms in ([(1.0, state)], [(0.5, state)] * 2, [(0.25, state), (0.75, twin)]):
        combined = products.combine(terms, into=state.spec)

        assert_same_products(combined.state, dense_products(state))
        assert combined.norm == pytest.approx(products.norm(state), rel=1e-9)
        assert combined.dropped == pytest.approx(0, abs=1e-7 * combined.norm)


def test_nothing_is_dropped_where_nothing_is_cut():
    """Components that are zero are none to be dropped, not even by rounding."""
    one, other = (make_state(make_spec(rank=4, modules=MANY), seed=seed) for seed in range(2))
    wide = one.part(one.spec.part(rank=12))

    combined = products.combine([(1.0, wide), (-2.0, other)], into=make_spec(rank=8, modules=MANY))

    assert combined.dropped == 0


def test_the_order_of_terms_does_not_matter():
    """And the weights' signs are the sum's."""
    states = [make_state(make_spec(rank=rank, alpha=3.0), seed=rank) for rank in (1, 2, 4)]
    terms = list(zip((0.5, -1.5, 2.0), states, strict=True))
    into = make_spec(rank=2)

    combined = products.combine(terms, into=into)
    turned = products.combine(terms[::-1], into=into)
    negated = products.combine([(-weight, state) for weight, state in terms], into=into)

    dense = dense_products(combined.state)
    assert_same_products(turned.state, dense)
    assert_same_products(negated.state, {module: -matrix for module, matrix in dense.items()})


def test_what_cancels_is_zero():
    """An adapter minus an equal one leaves nothing, also where it is another object."""
    state, twin = make_state(), make_state()

    for other in (state, twin):
        combined = products.combine([(1.0, state), (-1.0, other)], into=state.spec)

        assert not combined.state.values.any()
        assert combined.norm == pytest.approx(0, abs=1e-10)


def test_what_almost_cancels_keeps_its_digits():
    """The difference of adapters that differ by a millionth is right to three digits and more."""
    one = make_state(make_spec(rank=4, modules=MANY))
    other = AdapterState(
        spec=one.spec, values=one.values * (1 + 1e-6 * make_state(one.spec).values)
    )
    exact, against = dense_products(one), dense_products(other)

    found = dense_products(
        products.combine([(1.0, one), (-1.0, other)], into=make_spec(rank=8, modules=MANY)).state
    )

    for module, matrix in found.items():
        gap = exact[module] - against[module]
        assert (matrix - gap).norm() <= 1e-6 * gap.norm()


def test_zero_components_take_the_spare_rows():
    """Components that nothing is left for can still be trained; their columns of B are zero."""
    state = make_state(make_spec(rank=1))
    spare = make_state(make_spec(rank=3), seed=1)
    rows = {module: down for module, down, _ in spare.pairs()}
    into = make_spec(rank=4)

    for module, down, up in products.combine([(1.0, state)], into=into, spare=spare).state.pairs():
        assert down[0].norm() == pytest.approx(1)
        assert torch.equal(down[1:3], rows[module][1:3])
        assert not down[3].any()
        assert not up[:, 1:].any()
    for _, down, up in products.combine([(1.0, state)], into=into).state.pairs():
        assert not down[1:].any()
        assert not up[:, 1:].any()


def test_nothing_combined_is_zero():
    """No term, zero weights and untrained adapters all give zero, with all rows spare."""
    spec = make_spec()
    spare, untrained = make_state(spec, seed=1), AdapterState.initial(spec, seed=2)

    for terms in ([], [(0.0, make_state())], [(1.0, untrained)]):
        combined = products.combine(terms, into=spec, spare=spare)

        assert (combined.norm, combined.dropped) == (0, 0)
        for (_, down, up), (_, rows, _) in zip(combined.state.pairs(), spare.pairs(), strict=True):
            assert torch.equal(down, rows)
            assert not up.any()


def test_a_product_that_vanishes_in_float32_takes_the_spare_row():
    """A column of B that would be rounded to zero is a zero component."""
    state, spare = make_state(), make_state(seed=1)

    tiny = products.combine([(1e-40, state)], into=state.spec, spare=spare).state

    for (_, down, up), (_, rows, _) in zip(tiny.pairs(), spare.pairs(), strict=True):
        assert torch.equal(down, rows)
        assert not up.any()


@pytest.mark.parametrize("aliased", [0, 1])
def test_the_result_may_take_the_place_of_a_term(aliased):
    """Each module is read before it is written; what else the term's memory holds stays."""
    spec = make_spec(rank=4, modules=MANY)
    states = [make_state(spec, seed=seed) for seed in range(2)]
    terms = list(zip((0.25, 0.75), states, strict=True))
    expected = products.combine(terms, into=spec).state.values
    memory = torch.cat([torch.ones(3), states[aliased].values, torch.ones(3)])
    place = memory[3:-3]
    terms[aliased] = (terms[aliased][0], AdapterState(spec=spec, values=place))

    combined = products.combine(terms, into=spec, out=place)

    assert combined.state.values.data_ptr() == place.data_ptr()
    assert torch.equal(place, expected)
    assert torch.equal(memory[:3], torch.ones(3))
    assert torch.equal(memory[-3:], torch.ones(3))


def test_the_result_may_take_the_place_of_the_spare():
    """The spare rows stay where they are."""
    spare, state = make_state(make_spec(rank=3), seed=1), make_state(make_spec(rank=1))
    expected = products.combine([(1.0, state)], into=spare.spec, spare=spare).state.values

    products.combine([(1.0, state)], into=spare.spec, spare=spare, out=spare.values)

    assert torch.equal(spare.values, expected)


def test_a_result_in_the_way_of_a_term_is_refused():
    """A term of another rank, or that begins elsewhere, would be overwritten before it is read."""
    narrow, wide = make_spec(rank=1), make_spec(rank=2)
    memory = torch.ones(wide.size + 1)
    states = [
        AdapterState(spec=narrow, values=memory[: narrow.size]),
        AdapterState(spec=wide, values=memory[1:]),
    ]

    for state in states:
        with pytest.raises(AdapterError, match="overlaps"):
            products.combine([(1.0, state)], into=wide, out=memory[: wide.size])
        with pytest.raises(AdapterError, match="overlaps"):
            products.combine([], into=wide, spare=state, out=memory[: wide.size])


def test_an_adapter_beside_the_result_in_one_memory_is_fine():
    """Only what overlaps is in the way."""
    spec = make_spec()
    memory = torch.cat([torch.zeros(spec.size), make_state(spec).values])
    state = AdapterState(spec=spec, values=memory[spec.size :])

    products.combine([(1.0, state)], into=spec, out=memory[: spec.size])

    assert_same_products(
        AdapterState(spec=spec, values=memory[: spec.size]), dense_products(make_state(spec))
    )


def test_a_module_that_is_missing_counts_as_zero():
    """Adapters of some modules only can be combined, compared and subtracted."""
    whole, part = make_state(), make_state(make_spec(modules={UP: MODULES[UP]}), seed=1)
    dense, some = dense_products(whole), dense_products(part)
    expected = {Q: dense[Q], UP: dense[UP] + some[UP]}

    combined = products.combine([(1.0, part), (1.0, whole)], into=make_spec(rank=4))

    assert_same_products(combined.state, expected)
    inner = float((dense[UP] * some[UP]).sum())
    assert products.inner(whole, part) == pytest.approx(inner)
    assert products.inner(part, whole) == pytest.approx(inner)
    gap = math.hypot(float(dense[Q].norm()), float((dense[UP] - some[UP]).norm()))
    assert products.distance(whole, part) == pytest.approx(gap)


def test_what_has_no_place_in_the_result_is_refused():
    """A module, a shape or a base that the result has not must not be lost silently."""
    state = make_state()
    turned = {module: shape[::-1] for module, shape in MODULES.items()}

    for into, message in (
        (make_spec(modules={Q: MODULES[Q]}), f"{UP} is adapted"),
        (make_spec(modules=turned), "shape (3, 5) was expected, but it is (5, 3)"),
        (make_spec(base_digest="cd" * 32), "one base model"),
    ):
        with pytest.raises(AdapterError, match=re.escape(message)):
            products.combine([(1.0, state)], into=into)
    with pytest.raises(AdapterError, match="shape"):
        products.inner(state, make_state(make_spec(modules=turned)))
    with pytest.raises(AdapterError, match="one base model"):
        products.inner(state, make_state(make_spec(base_digest="cd" * 32)))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_must_be_finite(weight):
    """Such a weight would make everything else vanish."""
    with pytest.raises(AdapterError, match="finite"):
        products.combine([(weight, make_state())], into=make_spec())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("place", [0, -1])
def test_values_must_be_finite_and_of_a_size(value, place):
    """One such value, in A or in B, is an error rather than a result full of them."""
    state = make_state()
    state.values[place] = value
    state.values[place // 2] = value

    with pytest.raises(AdapterError, match="finite"):
        products.combine([(1.0, state)], into=state.spec)


@pytest.mark.parametrize("modules", [MODULES, MANY])
def test_the_threads_are_as_before(modules):
    """However many modules there are, and also after an error."""
    threads = torch.get_num_threads()
    state, broken = make_state(make_spec(modules=modules)), make_state(make_spec(modules=modules))
    broken.values.fill_(math.nan)

    products.combine([(1.0, state)], into=state.spec)
    assert torch.get_num_threads() == threads
    with pytest.raises(AdapterError):
        products.combine([(1.0, broken)], into=state.spec)
    assert torch.get_num_threads() == threads


def test_a_thread_among_others_takes_one_core():
    """Jobs that are as many as torch's threads get one thread each; fewer get all of them."""

    class Job:
        size = 1

    def work(job: Job, workspace: Workspace) -> int:
        torch.ones(2**20).add_(1)  # torch settles a new thread's number when it first needs it
        return torch.get_num_threads()

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert spread(work, [Job(), Job(), Job()]) == [1, 1, 1]
        assert spread(work, [Job()]) == [2]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_the_result_is_the_same_to_the_bit():
    """It does not depend on the number of threads that share the modules, nor on what ran first."""
    spec = make_spec(rank=8, modules=MANY)
    terms = [(0.1 * seed, make_state(spec, seed=seed)) for seed in range(4)]
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 2):
            torch.set_num_threads(number)
            combined = products.combine(terms, into=spec)
            inner = products.inner(terms[1][1], terms[2][1])
            results.append((combined.state.values, combined.norm, combined.dropped, inner))
    finally:
        torch.set_num_threads(threads)

    for values, *numbers in results[1:]:
        assert torch.equal(values, results[0][0])
        assert numbers == list(results[0][1:])


def test_a_tiny_change_keeps_its_digits():
    """Updates a millionth of the adapter's size have a norm that is right to eight digits."""
    received = make_state(make_spec(rank=4, modules=MANY))
    values = make_state(received.spec, seed=1).values * 1e-6
    update = AdapterUpdate(spec=received.spec, values=values, num_examples=1)
    scaling, deltas = received.spec.scaling, AdapterState(spec=received.spec, values=values)
    expected = 0.0
    for (_, a, b), (_, down, up) in zip(received.pairs(), deltas.pairs(), strict=True):
        change = up.double() @ (a.double() + down) + b.double() @ down.double()
        expected += float((scaling * change).square().sum())

    assert products.change_inner(received, update, update) == pytest.approx(expected, rel=1e-8)


def test_an_update_of_another_adapter_is_refused():
    """Its inner product with others would mean nothing."""
    received = make_state()
    good = AdapterUpdate(spec=received.spec, values=received.values, num_examples=1)
    turned = {module: shape[::-1] for module, shape in MODULES.items()}
    for spec, message in (
        (make_spec(base_digest="cd" * 32), "one base model"),
        (make_spec(alpha=5.0), "scaling"),
        (make_spec(modules=turned), "no counterpart"),
        (make_spec(modules={"other": (3, 5)}), "no counterpart"),
    ):
        bad = AdapterUpdate(spec=spec, values=torch.ones(spec.size), num_examples=1)
        with pytest.raises(AdapterError, match=message):
            products.change_inner(received, good, bad)


def test_products_need_both_factors():
    """A part of one factor stands for no product."""
    part = make_spec().part("B")
    state = AdapterState(spec=part, values=torch.ones(part.size))

    with pytest.raises(AdapterError, match="only one of its two factors"):
        products.norm(state)
    with pytest.raises(AdapterError, match="only one of its two factors"):
        products.combine([(1.0, state)], into=make_spec())


def test_balancing_leaves_a_fresh_adapter_trainable():
    """B is zero at first; A must not become zero too. And the adapter itself is not touched."""
    fresh = AdapterState.initial(make_spec(), seed=0)
    state = make_state()
    before = state.values.clone()

    assert torch.equal(products.balanced(fresh).values, fresh.values)
    products.balanced(state)
    assert torch.equal(state.values, before)


def test_spectral_norm_is_the_largest_singular_value_of_the_dense_product():
    """Of each module, whatever the ranks: also one above a module's own sizes."""
    for rank in (1, 4, 12):
        state = make_state(make_spec(rank=rank, alpha=3.0, modules={"q": (9, 30), "up": (30, 8)}))
        dense = dense_products(state)
        norms = products.spectral_norms(state)
        assert norms.keys() == dense.keys()
        for module, matrix in dense.items():
            expected = torch.linalg.matrix_norm(matrix.double(), ord=2)
            assert norms[module] == pytest.approx(float(expected), rel=1e-6)


def test_spectral_norm_of_factors_that_cancel_is_small():
    """Large factors whose product is nothing count as nothing, to rounding of their norms."""
    state = make_state(make_spec(rank=2, alpha=2.0, modules={"q": (40, 50)}))
    for _, down, up in state.pairs():
        down[1], up[:, 1] = down[0], -up[:, 0]
        state.values.mul_(1e6)
        largest = float(down.norm() * up.norm())
    assert products.spectral_norms(state)["q"] <= 1e-12 * largest


def test_spectral_norms_of_huge_values_are_finite():
    """Values at the end of float32's range are measured, so that they can be refused."""
    state = make_state(make_spec(modules={"q": (5, 6)}))
    state.values.fill_(3e38)
    assert math.isfinite(products.spectral_norms(state)["q"])
