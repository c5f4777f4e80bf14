"""The weighted mean of products."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation.product import Product
from fedlora.errors import AdapterError
from tests.oracles import dense_products, nearest_of_rank
from tests.strategies import copy_of, make_spec, make_state, make_update

SPEC = make_spec()
LARGE = make_spec(rank=3, alpha=6.0, modules={"m.q_proj": (20, 30), "m.up_proj": (25, 18)})
START = make_state(SPEC, seed=9)


def sent(
    start: AdapterState, *, rank: int | None = None, seed: int = 1, scale: float = 0.1
) -> AdapterUpdate:
    """Return what a client sends that moved the leading ``rank`` components of ``start``."""
    update = make_update(start.spec.part(rank=rank), seed=seed)
    update.values.mul_(scale)
    return update


def folded(
    start: AdapterState, updates: Sequence[AdapterUpdate], weights=None, shares=None
) -> tuple[AdapterUpdate, Product]:
    aggregator = Product()
    aggregator.begin(start)
    for index, update in enumerate(updates):
        weight, share = (weights or {}).get(index, 1.0), (shares or {}).get(index, 1.0)
        aggregator.add(copy_of(update), weight, share=share)
    return aggregator.finish(), aggregator


def dense_target(
    start: AdapterState, updates: Sequence[AdapterUpdate], weights=None, shares=None
) -> dict[str, Tensor]:
    """Return ``G + Σ wᵢ shareᵢ (Hᵢ - Gᵢ) / Σ wᵢ`` from dense matrices."""
    weights = [(weights or {}).get(i, 1.0) for i in range(len(updates))]
    target = dense_products(start)
    for index, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        received = start.part(update.spec)
        before, after = dense_products(received), dense_products(received.plus(update))
        count = weight * (shares or {}).get(index, 1.0) / sum(weights)
        for module in target:
            target[module] = target[module] + count * (after[module] - before[module])
    return target


def apart(state: AdapterState, target: dict[str, Tensor]) -> float:
    products = dense_products(state)
    return math.sqrt(sum(float((products[m] - target[m]).square().sum()) for m in target))


def size(target: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(matrix.square().sum()) for matrix in target.values()))


@pytest.mark.parametrize("clients", [1, 2, 7])
def test_it_is_the_weighted_mean_of_products(clients):
    """Exactly so where twice the rank holds every sum; the result has twice the rank."""
    updates = [sent(START, seed=seed) for seed in range(clients)]
    weights = {0: 5.0, 1: 0.5}
    update, aggregator = folded(START, updates, weights)
    assert update.spec == SPEC.part(rank=4)
    assert update.num_examples == 3 * clients
    target = dense_target(START, updates, weights)
    assert apart(START.plus(update), target) < 1e-5 * size(target)
    assert aggregator.dropped < 1e-5 * size(target)


def test_shares_and_lower_ranks_count_as_no_change():
    """What a client did not train, and the share of its change that is not taken in."""
    updates = [sent(START, rank=1, seed=1), sent(START, seed=2), sent(START, rank=1, seed=3)]
    weights, shares = {0: 2.0, 1: 1.0, 2: 7.0}, {1: 0.25, 2: 0.0}
    update, _ = folded(START, updates, weights, shares)
    target = dense_target(START, updates, weights, shares)
    assert apart(START.plus(update), target) < 1e-5 * size(target)


def test_ranks_are_mixed():
    """Each client moves the leading components of the global adapter that it received."""
    start = make_state(LARGE, seed=4)
    updates = [sent(start, rank=rank, seed=rank) for rank in (1, 2, 3)]
    update, aggregator = folded(start, updates, {2: 3.0})
    target = dense_target(start, updates, {2: 3.0})
    assert aggregator.dropped > 0
    assert apart(start.plus(update), target) <= aggregator.dropped + 1e-5 * size(target)


def test_streaming_loses_no_more_than_it_says_and_little():
    """Twice the rank is retained: the bound holds, and the best adapter of that rank is near."""
    start = make_state(LARGE, seed=4)
    updates = [sent(start, seed=seed, scale=0.3) for seed in range(12)]
    update, aggregator = folded(start, updates)
    target = dense_target(start, updates)
    best = {module: nearest_of_rank(matrix, 6) for module, matrix in target.items()}
    lost, least = apart(start.plus(update), target), size({m: target[m] - best[m] for m in best})
    assert least - 1e-5 <= lost <= aggregator.dropped + 1e-5 * size(target)
    # random changes share no direction, which is the worst case
    assert lost - least < 2e-3 * size(target)


def test_equal_clients_lose_nothing():
    """The mean of one adapter with itself is that adapter, whatever the weights."""
    start = make_state(LARGE, seed=4)
    one = sent(start, seed=5)
    update, aggregator = folded(start, [one, one, one], {0: 2.0, 2: 1e6})
    target = dense_products(start.plus(one))
    assert apart(start.plus(update), target) < 1e-5 * size(target)
    assert aggregator.dropped < 1e-5 * size(target)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
def test_no_change_changes_nothing(trained):
    """Zero updates, of any rank, leave the products; a fresh adapter's are zero."""
    start = START if trained else AdapterState.initial(SPEC, seed=1)
    nothing = [
        AdapterUpdate(
            spec=SPEC.part(rank=r), values=torch.zeros(SPEC.part(rank=r).size), num_examples=1
        )
        for r in (2, 1)
    ]
    update, _ = folded(start, nothing)
    target = dense_products(start)
    assert apart(start.plus(update), target) <= 1e-6 * size(target)


def test_a_share_of_nothing_first_is_no_change():
    """The first client may be one whose change is not taken in at all."""
    update, _ = folded(START, [sent(START, seed=1), sent(START, seed=2)], shares={0: 0.0, 1: 0.0})
    assert apart(START.plus(update), dense_products(START)) < 1e-5 * START.norm()


@pytest.mark.parametrize("gauge", [100.0, 0.01])
def test_a_turned_gauge_counts_as_the_product_that_it_stands_for(gauge):
    """A client that sends 100·B and A/100 of its honest adapter changes nothing by that."""
    honest = [sent(START, seed=seed) for seed in (1, 2, 3)]
    trained = START.plus(honest[0])
    for _, down, up in trained.pairs():
        down.div_(gauge)
        up.mul_(gauge)
    hostile = AdapterUpdate(spec=SPEC, values=trained.minus(START), num_examples=3)
    expected = dense_products(START.plus(folded(START, honest)[0]))
    turned = START.plus(folded(START, [hostile, *honest[1:]])[0])
    assert apart(turned, expected) < 1e-5 * size(expected)


def test_equal_order_gives_equal_bits():
    """The result depends on updates, weights and their order alone."""
    start = make_state(LARGE, seed=4)
    updates = [sent(start, seed=seed) for seed in range(4)]
    assert torch.equal(folded(start, updates)[0].values, folded(start, updates)[0].values)


def test_updates_and_global_adapter_are_left_as_they_are():
    """Nothing is written into what was given, and nothing of a round is left in the next."""
    aggregator, start = Product(), make_state(SPEC, seed=9)
    kept = sent(start, seed=1)
    before = [start.values.clone(), kept.values.clone()]
    results = []
    for _ in range(2):
        aggregator.begin(start)
        aggregator.add(copy_of(kept), 1.0)
        aggregator.add(sent(start, rank=1, seed=2), 2.0)
        results.append(aggregator.finish())
    assert torch.equal(start.values, before[0])
    assert torch.equal(kept.values, before[1])
    assert torch.equal(results[0].values, results[1].values)
    assert results[0].values.data_ptr() != results[1].values.data_ptr()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SPEC.part(rank=3), "rank 2 at most was expected, but it is 3"),
        (SPEC.part("B"), "different specifications"),
        (make_spec(alpha=8.0), "different specifications"),
        (make_spec(base_digest="cd" * 32), "different specifications"),
    ],
)
def test_an_update_of_another_adapter_is_refused(spec, message):
    """And the sum goes on without it."""
    aggregator = Product()
    aggregator.begin(START)
    aggregator.add(sent(START), 1.0)
    with pytest.raises(AdapterError, match=message):
        aggregator.add(make_update(spec), 1.0)
    assert torch.equal(aggregator.finish().values, folded(START, [sent(START)])[0].values)


@pytest.mark.parametrize("value", [1e6, -1e30, math.inf, math.nan])
def test_values_that_no_sum_survives_are_refused(value):
    """Though their products may cancel; and the sum goes on without them."""
    aggregator = Product()
    aggregator.begin(START)
    aggregator.add(sent(START), 1.0)
    broken = sent(START, seed=2)
    broken.values[3] = value
    with pytest.raises(AdapterError, match="values up to 100000 were expected"):
        aggregator.add(copy_of(broken), 1.0)
    with pytest.raises(AdapterError, match="positive and finite"):
        aggregator.add(sent(START), 0.0)
    assert torch.equal(aggregator.finish().values, folded(START, [sent(START)])[0].values)


def test_a_round_must_be_begun_and_hold_an_update():
    """As for every method."""
    aggregator = Product()
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.add(sent(START), 1.0)
    aggregator.begin(START)
    with pytest.raises(AdapterError, match="no update to aggregate"):
        aggregator.finish()
    aggregator.add(sent(START), 1.0)
    aggregator.finish()
    with pytest.raises(AdapterError, match="not begun"):
        aggregator.finish()
