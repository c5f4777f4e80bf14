"""Which aggregator and which server optimiser a recipe gets."""

import pytest
import torch

import fedlora.aggregation
from fedlora.adapter import AdapterUpdate
from fedlora.aggregation import new_aggregator, new_optimizer
from fedlora.aggregation.alternate import Alternate
from fedlora.aggregation.average import Average
from fedlora.aggregation.coordinate_wise import Median, TrimmedMean
from fedlora.aggregation.freeze_a import FreezeA
from fedlora.aggregation.product import Product
from fedlora.aggregation.refresh import Refresh
from fedlora.aggregation.server_optimizer import Adaptive, FactorMomentum, ProductMomentum
from fedlora.aggregation.share_a import ShareA
from fedlora.methods import METHODS
from fedlora.sections import Federation
from tests.strategies import HEADS, make_spec, make_state, make_update

SPEC = make_spec(heads=HEADS)
START = make_state(SPEC, seed=9)


def folded(aggregator, updates: list[AdapterUpdate]) -> AdapterUpdate:
    aggregator.begin(START)
    for update in updates:
        aggregator.add(update, 1.0)
    return aggregator.finish()


@pytest.mark.parametrize(
    ("method", "aggregator", "optimizer"),
    [
        ("product", Product, ProductMomentum),
        ("average", Average, ProductMomentum),
        ("freeze-a", FreezeA, FactorMomentum),
        ("alternate", Alternate, ProductMomentum),
        ("refresh", Refresh, ProductMomentum),
        ("share-a", ShareA, FactorMomentum),
    ],
)
def test_a_method_names_its_aggregator_and_the_space_of_its_momentum(method, aggregator, optimizer):
    """New ones each time: rounds share no sum."""
    federation = Federation(method=method)
    first, second = (new_aggregator(federation, attackers=0) for _ in range(2))
    assert type(first) is type(second) is aggregator
    assert first is not second
    assert type(new_optimizer(federation)) is optimizer


@pytest.mark.parametrize("method", METHODS)
def test_every_method_plays_a_round(method):
    """With the updates that its clients send, in the rounds in turn, and with its defaults."""
    federation, adapter = Federation(method=method), START
    for number in (1, 2, 3):
        part = SPEC.part(federation.facts.sent(number))
        update = folded(
            new_aggregator(federation, attackers=0),
            [make_update(part, seed=seed) for seed in (number, number + 10)],
        )
        step = new_optimizer(federation).step(START, update)
        assert step.adapter.spec == SPEC
        assert step.adapter.is_finite()
        assert not torch.equal(step.adapter.values, adapter.values)
        adapter = step.adapter


@pytest.mark.parametrize("method", ["freeze-a", "alternate"])
def test_coordinate_wise_rules_take_the_method_s_place(method):
    """The trimmed mean drops as many values at each end as there may be attackers."""
    sent = [make_update(SPEC.part("B"), seed=seed) for seed in range(5)]
    for robust, attackers, alone in [
        ("median", 1, Median()),
        ("trimmed-mean", 1, TrimmedMean(1)),
        ("trimmed-mean", 0, FreezeA()),
    ]:
        federation = Federation(method=method, robust=robust)
        chosen = folded(new_aggregator(federation, attackers=attackers), sent)
        torch.testing.assert_close(chosen.values, folded(alone, sent).values)


def test_refresh_turns_what_a_coordinate_wise_rule_chose():
    """The update is still of both factors."""
    sent = [make_update(SPEC.part("B"), seed=seed) for seed in range(3)]
    federation = Federation(method="refresh", robust="median")
    chosen = folded(new_aggregator(federation, attackers=0), sent)
    assert torch.equal(chosen.values, folded(Refresh(Median()), sent).values)


def test_the_recipe_s_learning_rate_and_momentum_are_the_optimizer_s():
    """Including what a recipe leaves to its defaults."""
    update = make_update(SPEC.part("B"))
    fast = Federation(method="freeze-a", server_learning_rate=2.0)
    optimizer = new_optimizer(fast)
    first = optimizer.step(START, update).adapter
    torch.testing.assert_close(first.values, START.plus(update).plus(update).values)
    nothing = AdapterUpdate(spec=update.spec, values=torch.zeros(update.spec.size), num_examples=1)
    moved = optimizer.step(first, nothing).adapter.minus(first)
    torch.testing.assert_close(moved, 0.5 * first.minus(START), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_optimizers_take_small_steps_by_default(kind):
    """A hundredth of a unit, since each value's step is scaled to about one."""
    optimizer = new_optimizer(Federation(method="freeze-a", server_optimizer=kind))
    assert isinstance(optimizer, Adaptive)
    update = make_update(SPEC.part("B"))
    update.values.fill_(1.0)
    moved = optimizer.step(START, update).adapter.part(update.spec).minus(START.part(update.spec))
    # m is half of the update, √v a tenth of it (adam) or nearly so (yogi)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=0.02, atol=0)


def test_what_other_layers_see():
    """The names are few; a method's class is its own module's."""
    assert set(fedlora.aggregation.__all__) == {
        "RULES",
        "Aggregator",
        "Rule",
        "ServerOptimizer",
        "Step",
        "Vote",
        "new_aggregator",
        "new_optimizer",
    }
