"""Finished adapters combined: what each method promises, against dense matrices."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.adapter import AdapterState
from fedlora.aggregation.offline import Ingredient, Mixture, combine
from fedlora.errors import AdapterError
from fedlora.methods import OfflineMethod
from tests.oracles import dense_products, nearest_of_rank
from tests.strategies import HEADS, make_spec, make_state

SIDES = {"model.layers.0.q_proj": (6, 5), "model.layers.0.up_proj": (5, 7), "lm_head": (5, 9)}
METHODS: tuple[OfflineMethod, ...] = ("product", "average", "concat")


def ingredients(*states: AdapterState, weights: list[float] | None = None) -> list[Ingredient]:
    """Return the adapters under the names a, b, c, …, by default of equal weights."""
    return [
        Ingredient(name=name, weight=weight, state=state)
        for name, weight, state in zip("abcdef", weights or [1] * len(states), states, strict=False)
    ]


def mean_of(parts: list[Ingredient]) -> dict[str, torch.Tensor]:
    """Return the weighted mean of the changes to each weight, as dense matrices."""
    mean: dict[str, torch.Tensor] = {}
    for part in parts:
        for module, change in dense_products(part.state).items():
            mean[module] = mean.get(module, 0) + part.weight * change
    total = sum(part.weight for part in parts)
    return {module: matrix / total for module, matrix in mean.items()}


def norm(matrices: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(matrix.square().sum()) for matrix in matrices.values()))


def distance(mixture: Mixture, mean: dict[str, torch.Tensor]) -> float:
    result = dense_products(mixture.state)
    assert result.keys() == mean.keys()
    return norm({module: result[module] - matrix for module, matrix in mean.items()})


@st.composite
def parts(draw: st.DrawFn, *, alike: bool = False) -> list[Ingredient]:
    """Up to four adapters of any ranks, alphas and modules; weights of both signs."""
    one = make_spec(rank=draw(st.integers(1, 5)), alpha=draw(st.floats(0.5, 32)), modules=SIDES)
    states = []
    for seed in range(draw(st.integers(1, 4))):
        names = draw(st.sets(st.sampled_from(sorted(SIDES)), min_size=1))
        other = make_spec(
            rank=draw(st.integers(1, 5)),
            alpha=draw(st.floats(0.5, 32)),
            modules={name: SIDES[name] for name in sorted(names)},
        )
        states.append(make_state(one if alike else other, seed=seed))
    weights = [draw(st.sampled_from([-0.5, 0.0, 0.1, 1.0, 3.0])) for _ in states]
    return ingredients(*states, weights=[abs(weights[0]) + 2, *weights[1:]])


@settings(max_examples=40)
@given(parts=parts(), rank=st.integers(1, 5))
def test_product_is_the_nearest_of_its_rank(parts, rank):
    """To the weighted mean of the products; the error is what is missing, over the mean's norm."""
    mixture, mean = combine(parts, rank=rank), mean_of(parts)
    best = {module: nearest_of_rank(matrix, rank) for module, matrix in mean.items()}
    optimum = norm({module: best[module] - matrix for module, matrix in mean.items()})
    assert distance(mixture, mean) <= optimum + 1e-6 * norm(mean)
    assert mixture.error == pytest.approx(optimum / norm(mean), abs=1e-6)
    assert mixture.state.spec.rank == rank


@settings(max_examples=40)
@given(parts=parts())
def test_concat_is_the_mean(parts):
    """Of the sum of the ranks, and of error zero but for rounding."""
    mixture, mean = combine(parts, method="concat"), mean_of(parts)
    assert mixture.state.spec.rank == sum(part.state.spec.rank for part in parts)
    assert distance(mixture, mean) < 1e-6 * norm(mean)
    assert mixture.error < 1e-6


@settings(max_examples=40)
@given(parts=parts(alike=True))
def test_average_says_what_it_misses(parts):
    """Each factor is the mean of the factors; the error is the dense one."""
    mixture, mean = combine(parts, method="average"), mean_of(parts)
    total = sum(part.weight for part in parts)
    expected = sum(part.weight * part.state.values.double() for part in parts) / total
    torch.testing.assert_close(mixture.state.values.double(), expected, atol=1e-6, rtol=1e-6)
    assert mixture.error == pytest.approx(distance(mixture, mean) / norm(mean), abs=1e-6)


@settings(max_examples=40)
@given(parts=parts())
def test_the_exact_rank_is_enough(parts):
    """Product of this rank misses nothing, however many adapters there are."""
    rank = combine(parts).exact_rank
    assert rank <= min(5, sum(part.state.spec.rank for part in parts))
    assert combine(parts, rank=rank).error < 1e-6


def test_the_largest_rank_and_the_first_scaling_are_kept():
    """By default; each ingredient's own scaling counts in the mean."""
    small, large = make_spec(rank=1, alpha=3.0), make_spec(rank=3, alpha=1.0)
    spec = combine(ingredients(make_state(small), make_state(large))).state.spec
    assert (spec.rank, spec.scaling) == (3, 3)


@pytest.mark.parametrize("method", METHODS)
def test_equal_adapters_are_their_own_mean(method):
    """Whatever the weights, and with nothing missing."""
    state = make_state()
    parts = ingredients(state, make_state(), weights=[5, 2])
    mixture = combine(parts, method=method)
    assert distance(mixture, dense_products(state)) < 1e-6 * norm(dense_products(state))
    assert mixture.error < 1e-6
    assert mixture.weights == (5 / 7, 2 / 7)
    assert mixture.norms == pytest.approx((norm(dense_products(state)),) * 2)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_in_is_nothing_out(method):
    """Adapters that change nothing, as before training, have a mean of norm zero and no error."""
    state = AdapterState.initial(make_spec(), seed=0)
    mixture = combine(ingredients(state, state), method=method)
    assert mixture.error == 0
    assert not any(change.any() for change in dense_products(mixture.state).values())


def test_adapters_may_cancel():
    """Twice an adapter less its double is nothing; to miss that is an infinite error."""
    state = make_state()
    double = AdapterState(spec=state.spec, values=state.values.clone())
    for _, _, up in double.pairs():
        up.mul_(2)
    parts = ingredients(state, double, weights=[2, -1])
    assert combine(parts).error == combine(parts, method="concat").error == 0
    assert combine(parts, method="average").error == 0  # A is the same, B cancels
    mixed = ingredients(state, rescaled(double, 4), weights=[2, -1])
    assert combine(mixed, method="average").error == math.inf


def rescaled(state: AdapterState, factor: float) -> AdapterState:
    """Return the same products from other factors."""
    other = AdapterState(spec=state.spec, values=state.values.clone())
    for _, down, up in other.pairs():
        down.mul_(factor)
        up.div_(factor)
    return other


def refuses(parts: list[Ingredient], says: str, **options) -> None:
    with pytest.raises(AdapterError, match=re.escape(says)):
        combine(parts, **options)


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("base_model", "c are adapters of different base models, 'embedded' and 'x'"),
        ("base_model_revision", "'embedded' and 'embedded' of revision 'x'"),
        ("base_digest", "base"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_other_bases_are_refused(method, field, says):
    """By name, revision or digest."""
    state = make_state()
    other = AdapterState(spec=replace(state.spec, **{field: "x"}), values=state.values)
    refuses(ingredients(state, state, other), says, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sides", [(4, 5), (3, 6)])
def test_other_shapes_are_refused(method, sides):
    """They are of another base, whatever its name; the message says whose."""
    state = make_state(make_spec(modules={"m": (3, 5)}))
    other = make_state(make_spec(modules={"m": sides}))
    says = "a and b are adapters of different base models: the shapes of m.lora_"
    refuses(ingredients(state, other), says, method=method)


def test_average_refuses_what_is_not_alike():
    """The message says which adapters, what differs, and what to use instead."""
    state = make_state()
    for spec, says in (
        (make_spec(rank=3), "a has rank 2 and alpha 4, b rank 3 and alpha 4. Use product."),
        (make_spec(alpha=5.0), "a has rank 2 and alpha 4, b rank 2 and alpha 5"),
        (make_spec(modules={"m": (3, 5)}), "a and b adapt different modules"),
    ):
        refuses(ingredients(state, make_state(spec)), says, method="average")


@pytest.mark.parametrize("rank", [0, -1, 6])
def test_a_rank_that_no_weight_can_have_is_refused(rank):
    """Nothing above the weights' own ranks, unless an adapter has it already."""
    state = make_state(make_spec(modules={"m": (5, 8)}))
    refuses(ingredients(state), "A rank from 1 to 5 was expected", rank=rank)
    high = make_state(make_spec(rank=6, modules={"m": (5, 8)}))
    assert combine(ingredients(high), rank=6).error < 1e-6


@pytest.mark.parametrize("method", ["average", "concat"])
def test_only_product_takes_a_rank(method):
    """The rank of the others is given by their adapters."""
    refuses(ingredients(make_state()), f"but {method} was given 2", method=method, rank=2)


@pytest.mark.parametrize(
    "weights", [[], [0.0], [-1.0], [1.0, -1.0], [1.0, math.nan], [math.inf], [1e308, 1e308]]
)
def test_weights_without_a_positive_sum_are_refused(weights):
    """They make no mean."""
    parts = ingredients(*[make_state() for _ in weights], weights=weights)
    refuses(parts, "Finite weights with a positive sum were expected")


@pytest.mark.parametrize("method", ["product", "concat"])
def test_a_scaling_that_leaves_float32_is_refused(method):
    """B would be infinite with the first adapter's scaling."""
    states = make_state(make_spec(alpha=1e-39)), make_state(make_spec(alpha=4.0))
    refuses(ingredients(*states), "leaves the range of float32", method=method)


def test_weights_that_leave_float32_are_refused():
    """Weights that nearly cancel make large ones relative to their sum."""
    state = make_state()
    parts = ingredients(rescaled(state, 1e-30), state, weights=[1, -1 + 1e-12])
    refuses(parts, "leaves the range of float32", method="average")


@pytest.mark.parametrize("method", METHODS)
def test_heads_are_averaged(method):
    """By the weights alone, whatever is done with B·A."""
    spec = make_spec(modules=SIDES, heads=HEADS)
    states = [make_state(spec, seed=seed) for seed in range(2)]
    mixture = combine(ingredients(*states, weights=[3, 1]), method=method)
    one, other = (dict(state.heads()) for state in states)
    for name, values in mixture.state.heads():
        torch.testing.assert_close(values, 0.75 * one[name] + 0.25 * other[name])
    assert mixture.state.spec.tensors[-len(HEADS) :] == spec.heads


@pytest.mark.parametrize("method", METHODS)
def test_classifiers_are_combined_with_each_other_alone(method):
    """Of the same shapes, too: a mean with a head that is not there would shrink the others."""
    with_head = make_state(make_spec(modules=SIDES, heads=HEADS))
    for heads in (None, {"score.weight": (2, 4)}):
        other = make_state(make_spec(modules=SIDES, heads=heads))
        with pytest.raises(AdapterError, match="a and b do not have the same head"):
            combine(ingredients(with_head, other), method=method)
    wider = make_state(make_spec(modules=SIDES, heads=HEADS | {"score.weight": (3, 4)}))
    with pytest.raises(
        AdapterError, match=r"the shapes of score\.weight are \(2, 4\) and \(3, 4\)"
    ):
        combine(ingredients(with_head, wider), method=method)
