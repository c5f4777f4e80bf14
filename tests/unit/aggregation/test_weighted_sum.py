"""The methods whose round is a weighted sum of what the clients send."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapter import AdapterUpdate
from fedlora.aggregation.alternate import Alternate
from fedlora.aggregation.average import Average
from fedlora.aggregation.freeze_a import FreezeA
from fedlora.aggregation.share_a import ShareA
from fedlora.errors import AdapterError
from tests.oracles import dense_products, weighted_mean
from tests.strategies import make_spec, make_state, make_update, specs, updates

SPEC = make_spec()
METHODS = [(Average, "AB"), (FreezeA, "B"), (Alternate, "B"), (Alternate, "A"), (ShareA, "A")]


def averaged(
    *pairs: tuple[AdapterUpdate, float], method: type = Average, shares: tuple[float, ...] = ()
) -> AdapterUpdate:
    aggregator = method()
    aggregator.begin(make_state())
    for index, (update, weight) in enumerate(pairs):
        aggregator.add(update, weight, share=shares[index] if shares else 1.0)
    return aggregator.finish()


@given(data=st.data(), spec=specs())
def test_it_is_the_weighted_mean_of_each_value(data, spec):
    """Equal to the mean in exact fractions, up to float32's rounding of each addition."""
    tame = st.floats(-100, 100, width=32)
    given_updates = data.draw(st.lists(updates(spec, floats=tame), min_size=1, max_size=5))
    clients = len(given_updates)
    weights = data.draw(st.lists(st.floats(0.01, 1000), min_size=clients, max_size=clients))
    shares = data.draw(st.lists(st.floats(0, 1), min_size=clients, max_size=clients))
    aggregator = Average()
    aggregator.begin(make_state(spec))
    for update, weight, share in zip(given_updates, weights, shares, strict=True):
        aggregator.add(update, weight, share=share)
    mean = aggregator.finish()
    rows = [
        [share * value for value in update.values.tolist()]
        for update, share in zip(given_updates, shares, strict=True)
    ]
    size = weighted_mean([[abs(value) for value in row] for row in rows], weights)
    error = (mean.values.double() - torch.tensor(weighted_mean(rows, weights))).abs()
    # three roundings of the mean and three of the addend per client, half a unit each, and what
    # rounds to zero
    bound = torch.tensor(size) * 2**-23 * 3 * clients + 1e-38
    assert bool((error <= bound).all())
    assert mean.num_examples == sum(update.num_examples for update in given_updates)


@pytest.mark.parametrize(("method", "factors"), METHODS)
def test_each_method_averages_the_factors_that_its_clients_send(method, factors):
    """The result is of these factors alone, and the others of the global adapter stay."""
    part = SPEC.part(factors)
    one, other = make_update(part, seed=1), make_update(part, seed=2)
    mean = averaged((one, 3.0), (other, 1.0), method=method)
    assert mean.spec == part
    assert mean.num_examples == 6
    torch.testing.assert_close(mean.values, (3 * one.values + other.values) / 4)


@pytest.mark.parametrize(("method", "factors"), METHODS[1:4])
def test_a_mean_of_one_factor_is_the_mean_of_products(method, factors):
    """Under a common other factor, averaging is exact."""
    start, part = make_state(SPEC), SPEC.part(factors)
    sent = [make_update(part, seed=seed) for seed in (1, 2, 3)]
    merged = start.plus(averaged(*[(update, 2.0) for update in sent], method=method))
    clients = [dense_products(start.plus(update)) for update in sent]
    for module, product in dense_products(merged).items():
        expected = torch.stack([client[module] for client in clients]).mean(dim=0)
        torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


def test_weights_are_what_counts():
    """A weight of three is three times the same update; the number of examples is no weight."""
    one, other = make_update(seed=1, num_examples=1000), make_update(seed=2, num_examples=1)
    weighted = averaged((one, 3.0), (other, 1.0)).values
    torch.testing.assert_close(weighted, (3 * one.values + other.values) / 4)
    torch.testing.assert_close(
        weighted, averaged((one, 1.0), (one, 1.0), (one, 1.0), (other, 1.0)).values
    )


@pytest.mark.parametrize("weight", [1.0, 240.0, 1 / 3, 2.0**60, 1e-300, 1e300])
def test_one_update_is_its_own_mean(weight):
    """Whatever its weight, bit for bit; so is the mean of an update with itself."""
    update = make_update()
    assert torch.equal(averaged((update, weight)).values, update.values)
    assert torch.equal(averaged((update, weight), (update, 1.0)).values, update.values)


def test_a_share_takes_in_a_part_of_the_change():
    """The rest counts as no change: the weight counts in full."""
    one, other = make_update(seed=1), make_update(seed=2)
    mean = averaged((one, 3.0), (other, 1.0), shares=(0.5, 1.0)).values
    torch.testing.assert_close(mean, (3 * 0.5 * one.values + other.values) / 4)
    nothing = averaged((one, 3.0), (other, 1.0), shares=(0.0, 0.0)).values
    assert not nothing.any()


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
    """What was added before a restart of the round does not count, not even which factors."""
    aggregator = Alternate()
    aggregator.begin(make_state())
    aggregator.add(make_update(SPEC.part("A"), seed=1), 5.0)
    aggregator.begin(make_state())
    update = make_update(SPEC.part("B"), seed=2, num_examples=7)
    aggregator.add(update, 1.0)
    mean = aggregator.finish()
    assert torch.equal(mean.values, update.values)
    assert mean.num_examples == 7


@pytest.mark.parametrize(
    ("weight", "share", "message"),
    [
        (0.0, 1.0, "positive and finite, but it is 0.0"),
        (-1.0, 1.0, "positive and finite, but it is -1.0"),
        (math.nan, 1.0, "positive and finite, but it is nan"),
        (math.inf, 1.0, "positive and finite, but it is inf"),
        (1.0, -0.1, "from 0 to 1, but it is -0.1"),
        (1.0, 1.1, "from 0 to 1, but it is 1.1"),
        (1.0, math.nan, "from 0 to 1, but it is nan"),
    ],
)
def test_a_weight_or_share_that_is_none_is_refused(weight, share, message):
    """And the sum goes on without it."""
    aggregator = Average()
    aggregator.begin(make_state())
    aggregator.add(make_update(seed=1), 1.0)
    with pytest.raises(AdapterError, match=message):
        aggregator.add(make_update(seed=2), weight, share=share)
    mean = aggregator.finish()
    assert torch.equal(mean.values, make_update(seed=1).values)
    assert mean.num_examples == 3


@pytest.mark.parametrize(
    "spec",
    [
        make_spec(alpha=8.0),
        SPEC.part(rank=1),
        SPEC.part(rank=3),
        SPEC.part("B"),
        make_spec(base_digest="cd" * 32),
    ],
    ids=["alpha", "narrow", "wide", "other factors", "base"],
)
def test_an_update_of_another_adapter_is_refused(spec):
    """Among others and, but for the factors, as the first; the sum goes on without it."""
    aggregator = Average()
    aggregator.begin(make_state())
    if len(spec.tensors) == len(SPEC.tensors):
        with pytest.raises(AdapterError, match="different specifications"):
            aggregator.add(make_update(spec), 1.0)
    aggregator.add(make_update(seed=1), 1.0)
    with pytest.raises(AdapterError, match="different specifications"):
        aggregator.add(make_update(spec), 1.0)
    assert torch.equal(aggregator.finish().values, make_update(seed=1).values)


def test_a_mean_of_nothing_is_refused():
    """There is no neutral answer."""
    aggregator = Average()
    aggregator.begin(make_state())
    with pytest.raises(AdapterError, match="no update to aggregate"):
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
