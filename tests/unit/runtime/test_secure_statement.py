"""What is said of secure sums must be what is done."""

import pytest

from fedlora.errors import RecipeError
from fedlora.recipe import Recipe
from fedlora.runtime import privacy_statement
from fedlora.runtime.fixed_point import fixed_point_of, require_sums
from fedlora.runtime.secure_statement import sentences, summary
from fedlora.runtime.secure_terms import terms_of

FOUR = """
datasets: [{path: x}]
federation: {sites: 4, rounds: 3}
privacy: {unit: none, secure_aggregation: true}
"""
LARGE = ("federation.sites=200", "privacy.threat_model=honest-but-curious")


def recipe_of(*overrides: str) -> Recipe:
    return Recipe.from_yaml(FOUR, overrides=overrides)


def test_a_plan_says_on_whom_sums_rest_and_how_exact_they_are():
    """The error is that of the fewest that open a sum: 4 · 100 / (3 · 2³¹) · 4."""
    assert summary(recipe_of()) == (
        "3 of 4 open it; 1 may collude with an aggregator that may lie; off by at most 2.5e-07 a "
        "value"
    )
    few = summary(recipe_of("privacy.colluders=0", "privacy.threat_model=honest-but-curious"))
    assert "none may collude with an aggregator that follows the protocol" in few


def test_of_a_large_cohort_it_says_the_neighbourhoods():
    """Degree and threshold are those that the sums go by."""
    recipe = recipe_of(*LARGE)
    terms = terms_of(recipe)
    assert summary(recipe).startswith(
        f"each of 200 shares keys with {terms.degree}, {terms.threshold} of whom open its mask; up "
        "to 10 may drop out; 66 may collude"
    )
    assert "over 180 or more of 200" in sentences(recipe, [])[0]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((*LARGE, "privacy.dropout_rate=0.5"), "No sparse graph"),
        (("federation.local_steps=1000000000",), "federation.max_weight"),
    ],
)
def test_sums_that_cannot_be_are_refused_as_the_recipe_s(overrides, reason):
    """With the reason and what to take; without secure aggregation nothing is."""
    with pytest.raises(RecipeError, match=f"privacy.secure_aggregation: .*{reason}"):
        require_sums(recipe_of(*overrides))
    require_sums(Recipe.from_yaml(FOUR, overrides=["privacy={unit: none}"]))


def test_what_came_of_the_sums_is_counted():
    """How many sites, the largest error, rounds with drop-outs and without a sum."""
    full = {"summed": 4, "error_bound": 1e-7}
    rounds = [full, {"summed": 3, "error_bound": 2e-7}, {"abandoned": "x"}]
    records = [{"round": 0}] + [{"round": n, "secure_sum": s} for n, s in enumerate(rounds, 1)]
    said = sentences(recipe_of(), records)
    assert said[1] == (
        "Of 3 rounds, 2 gave a sum, over 3 to 4 sites, the mean off by at most 2.0e-07 a value. "
        "Sites had dropped out in round 2. Nothing was opened, and the adapter left as it was, in "
        "round 3."
    )
    assert len(sentences(recipe_of(), records[:1])) == len(said) - 1


@pytest.mark.parametrize(
    "unit", ["{unit: none", "{unit: example, epsilon: 8, delta: 1e-5, records: 800"]
)
def test_the_statement_says_that_no_update_was_seen_singly(unit):
    """Whatever the unit; and what is not hidden all the same, with the norm that sites keep to."""
    recipe = recipe_of(f"privacy={unit}, secure_aggregation: true, clip_norm: 3}}")
    said = " ".join(privacy_statement.statement(recipe, []))
    assert fixed_point_of(recipe).clip_norm == 3
    assert "sums over 3 or more of 4 alone: even if it lied" in said
    assert "Not hidden: the sums" in said
    assert "its norm was at most 3" in said
    assert "sent its adapter updates" not in said
