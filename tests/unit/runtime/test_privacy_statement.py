"""What reports say of privacy must be what is done."""

import pytest

from fedlora.recipe import Recipe
from fedlora.runtime.privacy_statement import statement

EXAMPLES = """
datasets: [{path: x, site: a}]
privacy: {unit: example, epsilon: 8, delta: 1e-4, records: 800}
federation: {rounds: 1, local_steps: 2, evaluate_every: 0}
"""


@pytest.mark.parametrize("override", ["", "privacy.clip_quantile=0.5"])
def test_a_clip_norm_that_moves_is_said_to(override):
    """Otherwise neither norm nor noise are what the sentence before says."""
    recipe = Recipe.from_yaml(EXAMPLES, overrides=[override] if override else [])
    said = " ".join(statement(recipe, []))
    assert "clips its gradient to a norm of 1 and adds normal noise" in said
    assert ("The norm is that of the first step" in said) is bool(override)


@pytest.mark.parametrize("override", ["", "init_from=adapter"])
def test_an_adapter_that_training_begins_with_is_said_to_be_public(override):
    """What it was trained on is no part of the promise, whichever the unit is."""
    overrides = [override] if override else []
    clients = ["privacy={unit: client, epsilon: 8, delta: 1e-2, clip_norm: 1}"]
    for unit in ([], clients):
        said = " ".join(statement(Recipe.from_yaml(EXAMPLES, overrides=[*unit, *overrides]), []))
        assert ("It counts as public" in said) is bool(override)
