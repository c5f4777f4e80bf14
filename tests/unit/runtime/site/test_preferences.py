"""A site that learns preferences: its rounds, private or not, and what it measures."""

import math
from dataclasses import replace

import pytest

from fedlora.adapter import AdapterState
from fedlora.data.examples import Preference, Turn
from fedlora.privacy.charge import Charge
from fedlora.privacy.mechanism import KeyStream
from fedlora.runtime.site.objectives import objective_of
from fedlora.runtime.site.private_steps import private_steps
from fedlora.runtime.site.site import Site

FRUIT = "apple", "pear", "plum", "fig", "quince", "medlar", "grape", "cherry"
PAIRS = [
    Preference(
        (Turn("user", f"What is a {name}?"),),
        chosen=Turn("assistant", f"The {name} is a fruit of the north, and of the south as well."),
        rejected=Turn("assistant", "No."),
    )
    for name in FRUIT
]
PRIVATE = "privacy={unit: example, epsilon: 8, delta: 1e-3, records: 20}"
DPO = "objective=dpo", "dpo_beta=0.5", "micro_batch_size=2", "federation.local_steps=4"


@pytest.fixture
def site(small_recipe):
    """Return a site with eight pairs, under a recipe with overrides."""

    def make(*overrides):
        recipe = small_recipe(*DPO, *overrides)
        objective = objective_of(recipe)
        opened = Site.open(small_recipe(), "north")  # for its base: it has as many rows
        rows = [objective.tokenize(row, opened.base.tokenizer) for row in PAIRS]
        return replace(
            opened, recipe=recipe, objective=objective, train_rows=rows, held_out_rows=rows[:4]
        )

    return make


def start(site):
    return AdapterState.initial(site.base.spec, seed=0)


def test_a_round_learns_what_is_preferred(site):
    """From log 2, which is what an adapter that changes nothing has, of a pair and not a token."""
    north = site()
    before = north.evaluate(start(north))
    assert before.loss == pytest.approx(math.log(2), rel=1e-5)
    assert before.tokens == 4
    result = north.train_round(start(north), number=1)
    after = north.evaluate(result.state)
    assert after.loss < before.loss
    assert result.examples == 8
    assert result.tokens == sum(
        sum(side.supervised[1:]) for row in north.train_rows for side in (row.chosen, row.rejected)
    )
    assert north.losses(north.held_out_rows, None) == pytest.approx([math.log(2)] * 4)
    assert sum(north.losses(north.held_out_rows, result.state)) == pytest.approx(after.loss_sum)


def test_the_round_begins_at_its_reference(site):
    """With the received adapter as reference at log 2 again; with the base where it had come to."""
    base, moving = site(), site("dpo_reference=global")
    received = base.train_round(start(base), number=1).state
    first = moving.train_round(received, number=2).losses[0]
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert base.train_round(received, number=2).losses[0] < first - 0.05
    assert moving.evaluate(received) == base.evaluate(received)  # always against the base


@pytest.mark.parametrize("reference", ["base", "global"])
def test_a_private_round_is_of_pairs(site, reference):
    """Without noise and clipping it is the plain round, as long as each pair is drawn."""
    north = site(f"dpo_reference={reference}", "micro_batch_size=8", "federation.local_steps=2")
    source = KeyStream.reproducible("test")
    charge = Charge.of_steps(2, sensitivity=1e3, noise_multiplier=0.0, sampling_rate=1.0)
    recipe = north.recipe.model_copy(update={"max_grad_norm": 1e3})
    plain = replace(north, recipe=recipe).train_round(start(north), number=1).state
    steps = private_steps(north.recipe, charge, source)
    private = north.train_round_privately(start(north), number=1, mechanism=steps, source=source)
    moved = plain.values - start(north).values
    assert float((private.state.values - plain.values).norm() / moved.norm()) < 0.01
    assert private.examples == 16


def test_a_held_out_pair_weighs_no_more_than_the_largest_loss(site):
    """Under privacy: its own loss, cut, whatever the others are."""
    north = site()
    trained = north.train_round(start(north), number=1).state
    losses = north.losses(north.held_out_rows, trained)
    largest = sorted(losses)[1]
    total = north.clipped_loss_sum(trained, largest=largest)
    assert total == pytest.approx(sum(min(loss, largest) for loss in losses), rel=1e-4)


def test_forgetting_is_measured_on_text(site, sites):
    """The public text has no answers to prefer: its own tokens are measured."""
    north = site(f"publish.forgetting={{path: {sites['south']}, margin: 1}}")
    measured = north.evaluate_public(start(north))
    assert measured.tokens == sum(row.length - 1 for row in north.public_rows)
    assert measured.loss > math.log(2)
