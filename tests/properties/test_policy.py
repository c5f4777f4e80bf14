"""No recipe outside a bound passes, and the chain takes exactly the histories that go forward."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import PolicyError
from fedlora.gate.chain import KEEP, AdapterChain
from fedlora.gate.policy import Policy
from fedlora.recipe import Recipe
from tests.strategies import make_spec

SPEC = make_spec(rank=8, alpha=16.0)
SMALL = st.integers(1, 40)
UNITS = {"none": 0, "client": 1, "example": 2}
"""By what they hide from the aggregator."""


@st.composite
def asked(draw: st.DrawFn) -> Recipe:
    """Recipes whose keys lie on both sides of the bounds that are drawn."""
    unit = draw(st.sampled_from(sorted(UNITS)))
    batch = draw(SMALL)
    epsilon, delta = draw(st.integers(1, 40)) / 4, draw(st.sampled_from([1e-9, 1e-6, 1e-4]))
    promised = {"unit": unit, "epsilon": epsilon, "delta": delta}
    privacy = {
        "none": {"unit": "none"},
        "example": {**promised, "records": 1000},
        "client": {**promised, "clip_norm": 1.0},
    }[unit]
    return Recipe.model_validate({
        "privacy": privacy,
        "datasets": [{"path": "a", "site": "north"}, {"path": "b", "site": "south"}],
        "seed": draw(st.integers(0, 3)),
        "learning_rate": draw(SMALL) / 1000,
        "micro_batch_size": batch,
        "sequence_len": draw(SMALL) + 8,
        "train_on_inputs": draw(st.booleans()),
        "federation": {
            "rounds": draw(SMALL),
            "local_steps": draw(SMALL),
            "evaluate_every": 0,
            "method": draw(st.sampled_from(["freeze-a", "average"] if unit == "none" else
                                           ["freeze-a"])),
        },
    })  # fmt: skip


@st.composite
def bounds(draw: st.DrawFn) -> dict[str, object]:
    """Bounds of all kinds."""
    least = draw(SMALL)
    return {
        "base_models": [{"digest": SPEC.base_digest}],
        "privacy": {
            "unit": draw(st.sampled_from(sorted(UNITS))),
            "max_epsilon": draw(st.integers(1, 40)) / 4,
            "max_delta": draw(st.sampled_from([1e-9, 1e-6, 1e-4])),
        },
        "learning_rate": draw(SMALL) / 1000,
        "batch_size": {"min": least, "max": least + draw(SMALL)},
        "local_steps": draw(SMALL),
        "rounds": draw(SMALL),
        "sequence_len": draw(SMALL) + 8,
        "train_on_inputs": draw(st.booleans()),
        "seeds": draw(st.sampled_from(["any", [0, 1]])),
        "methods": draw(st.sampled_from([["freeze-a"], ["freeze-a", "average"]])),
    }


def inside(recipe: Recipe, allowed: dict) -> bool:
    """Tell whether a recipe is within bounds, one obvious comparison a bound."""
    privacy, least, size = recipe.privacy, allowed["privacy"], allowed["batch_size"]
    return all(
        [
            UNITS[privacy.unit] >= UNITS[least["unit"]],
            (privacy.epsilon or 0) <= least["max_epsilon"],
            (privacy.delta or 0) <= least["max_delta"],
            recipe.learning_rate <= allowed["learning_rate"],
            size["min"] <= recipe.batch_size <= size["max"],
            recipe.federation.local_steps <= allowed["local_steps"],
            recipe.federation.rounds <= allowed["rounds"],
            recipe.sequence_len <= allowed["sequence_len"],
            allowed["train_on_inputs"] or not recipe.train_on_inputs,
            allowed["seeds"] == "any" or recipe.seed in allowed["seeds"],
            recipe.federation.method in allowed["methods"],
        ]
    )


def passes(policy: Policy, recipe: Recipe) -> bool:
    try:
        policy.require_recipe(recipe, SPEC, site="north")
    except PolicyError:
        return False
    return True


@given(recipe=asked(), allowed=bounds())
def test_a_recipe_passes_if_and_only_if_it_is_within_all_bounds(recipe, allowed):
    """Neither more nor less than what the operator wrote."""
    assert passes(Policy.model_validate({"bounds": allowed}), recipe) == inside(recipe, allowed)


@given(recipe=asked(), other=asked())
def test_a_digest_allows_one_recipe(recipe, other):
    """And no other, however near."""
    policy = Policy(recipes=(recipe.digest,))
    assert passes(policy, recipe)
    assert passes(policy, other) == (other == recipe)


HISTORIES = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), max_size=25)


@given(history=HISTORIES)
def test_the_chain_takes_what_goes_forward_or_comes_again(history):
    """It agrees, step by step, with a list of all that was taken; what it refuses changes nothing.

    After a restart of the gate at any point it says the same.
    """
    taken: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, digest in history:
            chain = AdapterChain(Path(folder))
            last = max((known for known, _ in taken), default=-1)
            again = (number, digest) in taken and number > last - KEEP
            good = number > last or again
            try:
                seen = chain.require_next("run", "recipe", number=number, digest=digest)
            except PolicyError:
                assert not good
                continue
            assert good
            assert (seen.rounds if seen else -1) == last
            for _ in range(2):  # a crash after it was kept: it is kept again
                chain.keep("run", "recipe", number=number, digest=digest, norms={"m": 1.0})
            if number > last:
                taken.append((number, digest))
