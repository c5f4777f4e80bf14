"""What a recipe says of publishing, and what is refused."""

import pytest

from fedlora.errors import RecipeError
from fedlora.recipe import Recipe
from fedlora.sections import AT_SITE


def recipe(text: str = "", *, privacy: str = "{unit: none}", federation: str = "{}") -> Recipe:
    return Recipe.from_yaml(
        f"datasets: [{{path: x}}]\nprivacy: {privacy}\n"
        f"federation: {{rounds: 6, {federation.strip('{}')}}}\npublish: {{{text}}}\n"
    )


@pytest.mark.parametrize(
    ("text", "rounds"),
    [("", {6}), ("every: 2", {2, 4, 6}), ("every: 4", {4, 6}), ("every: 6", {6})],
)
def test_the_last_round_has_a_release(text, rounds):
    """Besides it, each ``every``-th."""
    made = recipe(text)
    assert made.publish.rounds(made.federation) == rounds


def test_the_public_text_is_measured_for_releases_alone():
    """And before the first round, where the adapter changes nothing: that is the base."""
    made = recipe("every: 3, forgetting: {path: general.txt}", federation="evaluate_every: 3")
    assert made.publish.text_rounds(made.federation) == {0, 3, 6}
    assert made.asked_rounds == made.federation.evaluated_rounds == {0, 3, 6}
    assert recipe().publish.text_rounds(made.federation) == frozenset()


@pytest.mark.parametrize(
    ("privacy", "federation"),
    [
        ("{unit: example, epsilon: 8, delta: 1e-5, records: 1000}", "evaluate_every: 0"),
        ("{unit: client, epsilon: 8, delta: 1e-3, clip_norm: 1}", "evaluate_every: 0"),
    ],
)
def test_the_public_text_is_measured_where_nothing_else_is(privacy, federation):
    """It costs no privacy, so that it needs no evaluation of the sites' own rows."""
    made = recipe("forgetting: {path: general.txt}", privacy=privacy, federation=federation)
    assert made.federation.evaluated_rounds == frozenset()
    assert made.asked_rounds == {0, 6}


def test_a_site_names_the_public_text_unless_the_recipe_does():
    """The default path means each site's own."""
    assert recipe("forgetting: {margin: 0.5}").publish.forgetting.path == AT_SITE


@pytest.mark.parametrize(
    ("text", "federation", "reason"),
    [
        ("every: 7", "", "there are 6 rounds"),
        ("every: 2", "evaluate_every: 3", "take a multiple of it"),
        ("margin: -1", "", "margin"),
        ("promoted: ../x", "", "promoted"),
        ("license: 'a b'", "", "license"),
    ],
)
def test_what_could_not_be_judged_is_refused(text, federation, reason):
    """When the recipe is read, with what to do."""
    with pytest.raises(RecipeError, match=reason):
        recipe(text, federation=federation)
