"""The weighted mean of updates, and the step that the server takes with it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapter import AdapterUpdate
from fedlora.aggregation import Average, PlainOptimizer, new_aggregator
from fedlora.errors import AdapterError
from tests.oracles import weighted_mean
from tests.strategies import make_spec, make_state, make_update, specs, updates

SPEC = make_spec()


def averaged(*pairs: tuple[AdapterUpdate, float]) -> AdapterUpdate:
    aggregator = Average()
    aggregator.begin(make_state(pairs[0][0].spec))
    for update, weight in pairs:
        aggregator.add(update, weight)
    return aggregator.finish()


@given(data=st.data(), spec=specs())
def test_it_is_the_weighted_mean_of_each_value(data, spec):
    """Equal to the mean in exact fractions, up to float32's rounding of each addition."""
    tame = st.floats(-100, 100, width=32)
    given_updates = data.draw(st.lists(updates(spec, floats=tame), min_size=1, max_size=5))
    weights = data.draw(
        st.lists(st.floats(0.01, 1000), min_size=len(given_updates), max_size=len(given_updates))
    )
    mean = averaged(*zip(given_updates, weights, strict=True))
    rows = [update.values.tolist() for update in given_updates]
    size = weighted_mean([[abs(value) for value in row] for row in rows], weights)
    error = (mean.values.double() - torch.tensor(weighted_mean(rows, weights))).abs()
    # a product, a sum and a quotient a client, each within half a unit in the last place
    bound = torch.tensor(size) * 2**-23 * (len(rows) + 2) + 1e-38
    assert bool((error <= bound).all())
    assert mean.num_examples == sum(update.num_examples for update in given_updates)


def test_weights_are_what_counts():
    """A weight of three is three times the same update; the number of examples is no weight."""
    one, other = make_update(seed=1, num_examples=1000), make_update(seed=2, num_examples=1)
    weighted = averaged((one, 3.0), (other, 1.0)).values
    torch.testing.assert_close(weighted, (3 * one.values + other.values) / 4)
    torch.testing.assert_close(
        weighted, averaged((one, 1.0), (one, 1.0), (one, 1.0), (other, 1.0)).values
    )


@pytest.mark.parametrize("weight", [1.0, 240.0, 2.0**60])
def test_one_update_is_its_own_mean(weight):
    """Whatever its weight, up to rounding."""
    update = make_update()
    mean = averaged((update, weight)).values
    torch.testing.assert_close(mean, update.values, rtol=2**-22, atol=0)


def test_equal_order_gives_equal_bits():
    """The result depends on updates, weights and their order alone."""
    pairs = [(make_update(seed=seed), 1.0 + seed) for seed in range(5)]
    assert torch.equal(averaged(*pairs).values, averaged(*pairs).values)
    torch.testing.assert_close(averaged(*pairs).values, averaged(*pairs[::-1]).values)


def test_updates_are_left_as_they_are():
    """Neither the sum nor the mean is written into what was added, nor into an earlier result."""
    aggregator, update = Average(), make_update(seed=1)
    before = update.values.clone()
    results = []
    for _ in range(2):
        aggregator.begin(make_state())
        aggregator.add(update, 2.0)
        aggregator.add(make_update(seed=2 + len(results)), 1.0)
        results.append(aggregator.finish())
    assert torch.equal(before, update.values)
    expected = (2 * before + make_update(seed=2).values) / 3
    torch.testing.assert_close(results[0].values, expected)


def test_a_round_that_was_begun_anew_forgets():
    """What was added before a restart of the round does not count."""
    aggregator = Average()
    aggregator.begin(make_state())
    aggregator.add(make_update(seed=1), 5.0)
    aggregator.begin(make_state())
    aggregator.add(make_update(seed=2, num_examples=7), 1.0)
    mean = aggregator.finish()
    assert torch.equal(mean.values, make_update(seed=2).values)
    assert mean.num_examples == 7


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight):
    """And the sum goes on without it."""
    aggregator = Average()
    aggregator.begin(make_state())
    aggregator.add(make_update(seed=1), 1.0)
    with pytest.raises(AdapterError, match=f"positive and finite, but it is {weight}"):
        aggregator.add(make_update(seed=2), weight)
    assert torch.equal(aggregator.finish().values, make_update(seed=1).values)


def test_an_update_of_another_adapter_is_refused():
    """And the sum goes on without it."""
    aggregator = Average()
    aggregator.begin(make_state())
    aggregator.add(make_update(seed=1), 1.0)
    with pytest.raises(AdapterError, match="different specifications"):
        aggregator.add(make_update(make_spec(alpha=8.0)), 1.0)
    assert torch.equal(aggregator.finish().values, make_update(seed=1).values)


def test_a_mean_of_nothing_is_refused():
    """There is no neutral answer."""
    aggregator = Average()
    aggregator.begin(make_state())
    with pytest.raises(AdapterError, match="no update to average"):
        aggregator.finish()


def test_a_round_must_be_begun():
    """Before the first and after each finish."""
    aggregator = Average()
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.add(make_update(), 1.0)
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.finish()
    aggregator.begin(make_state())
    aggregator.add(make_update(), 1.0)
    aggregator.finish()
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.add(make_update(), 1.0)


def test_every_round_trains_every_tensor():
    """Averaging trains both factors."""
    assert Average().plan(1, SPEC) == Average().plan(2, SPEC) == SPEC.tensors


def test_a_recipe_s_method_names_its_aggregator():
    """A new one each time: rounds share no sum."""
    first, second = new_aggregator("average"), new_aggregator("average")
    assert isinstance(first, Average)
    assert first is not second


def test_the_plain_step_adds_the_update():
    """Server learning rate one, no momentum, nothing to keep."""
    state, update, optimizer = make_state(seed=1), make_update(seed=2), PlainOptimizer()
    stepped = optimizer.step(state, update)
    assert torch.equal(stepped.values, state.values + update.values)
    assert torch.equal(state.values, make_state(seed=1).values)
    assert optimizer.state() == {}
    with pytest.raises(AdapterError, match="different specifications"):
        optimizer.step(state, make_update(make_spec(rank=3)))
