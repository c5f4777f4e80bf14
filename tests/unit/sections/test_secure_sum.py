"""Secure aggregation in a recipe: what follows from its keys, and what is refused."""

import re

import pytest

from fedlora.errors import RecipeError
from fedlora.recipe import Recipe


def read(sites: int = 4, *, privacy: str = "", unit: str = "none", rest: str = "") -> Recipe:
    """Read a recipe with secure aggregation; each site is in each cohort unless ``rest`` says."""
    return Recipe.from_yaml(
        "datasets: [{path: a}]\n"
        f"privacy: {{secure_aggregation: true, unit: {unit}, {privacy}}}\n{rest}",
        overrides=[f"federation.sites={sites}"],
    )


def refusal(sites: int = 4, *, privacy: str = "", unit: str = "none", rest: str = "") -> str:
    """Return why a recipe is refused."""
    with pytest.raises(RecipeError) as caught:
        read(sites, privacy=privacy, unit=unit, rest=rest)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sites", "threshold", "colluders"),
    [(3, 3, 0), (4, 3, 1), (5, 4, 1), (8, 6, 2), (9, 7, 2), (10, 7, 3), (100, 67, 33)],
)
def test_the_defaults_stand_an_aggregator_that_lies(sites, threshold, colluders):
    """More than two thirds open a sum, which fewer than a third of colluders cannot prevent."""
    recipe = read(sites)
    assert (recipe.threshold, recipe.colluders) == (threshold, colluders)
    assert recipe.privacy.threat_model == "malicious-aggregator"
    assert 2 * recipe.threshold > sites + recipe.colluders
    assert recipe.quorum_of(sites) == threshold
    assert recipe.secure_clip_norm == 100


def test_the_default_threshold_stands_fewer_than_a_third_in_every_cohort():
    """Bonawitz et al. 2017, section 6: t = ⌊2n/3⌋ + 1 stands ⌈n/3⌉ - 1."""
    for sites in range(3, 101):
        assert read(sites).colluders == -(-sites // 3) - 1


@pytest.mark.parametrize(
    ("privacy", "colluders"),
    [
        ("threshold: 5", 1),
        ("threshold: 8", 2),
        ("threshold: 3, threat_model: honest-but-curious", 2),
        ("threshold: 6, threat_model: honest-but-curious", 2),
    ],
)
def test_colluders_follow_from_the_threshold(privacy, colluders):
    """As many as it stands, but fewer than a third."""
    assert read(8, privacy=privacy).colluders == colluders


def test_a_secure_run_has_defaults_that_fit_it():
    """None of them has to be said, and the resolved recipe reads back equal."""
    recipe = read()
    assert recipe.federation.method == "freeze-a"
    assert recipe.federation.evaluate_every == 0
    assert (recipe.wire.codec, recipe.wire.compress) == ("fp32", False)
    assert recipe.federation.stage_timeout == 300
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_what_is_said_stands():
    """Defaults give way."""
    recipe = read(privacy="clip_norm: 3, colluders: 0, threshold: 4", rest="federation: {}\n")
    assert (recipe.secure_clip_norm, recipe.colluders, recipe.threshold) == (3, 0, 4)
    rest = "federation: {method: alternate, weighting: uniform, quorum: 4}\n"
    assert read(rest=rest).federation.method == "alternate"


def test_noised_evaluations_are_the_sites_own_to_make():
    """With unit example each looks at its rows through noise; evaluating is the default there."""
    privacy = "epsilon: 8, delta: 1e-5, records: 500, evaluation_noise: 2"
    assert read(unit="example", privacy=privacy).federation.evaluate_every == 1


def test_the_clients_of_a_cohort_count_not_all_sites():
    """All of the bounds are of a cohort's size."""
    recipe = read(40, rest="federation: {cohort_size: 8}\n")
    assert (recipe.threshold, recipe.colluders) == (6, 2)


# Bounds: what holds there, and what is refused one below


@pytest.mark.parametrize(
    ("sites", "holds", "broken", "says"),
    [
        (8, "threshold: 5, colluders: 1", "threshold: 5, colluders: 2", "threshold of 6 or more"),
        (8, "threshold: 6, colluders: 3", "threshold: 5, colluders: 3", "threshold of 6 or more"),
        (7, "threshold: 4, colluders: 0", "threshold: 3, colluders: 0", "threshold of 4 or more"),
        (4, "threshold: 4, colluders: 3", "threshold: 3, colluders: 3", "threshold of 4 or more"),
        (8, "threshold: 8", "threshold: 9", "take at most 8"),
        (8, "threshold: 5", "threshold: 4", "threshold of 5 or more"),
    ],
)
def test_an_aggregator_that_lies_is_withstood_up_to_the_bound(sites, holds, broken, says):
    """2t > n + |C| and t <= n; one less is refused with what to take."""
    assert read(sites, privacy=holds)
    assert says in refusal(sites, privacy=broken)


@pytest.mark.parametrize(
    ("holds", "broken", "says"),
    [
        ("threshold: 4, colluders: 3", "threshold: 3, colluders: 3", "threshold of 4 or more"),
        ("threshold: 8, colluders: 7", "threshold: 8, colluders: 8", "some must be honest"),
    ],
)
def test_colluders_alone_never_open_a_sum(holds, broken, says):
    """Honest but curious: t > |C|."""
    curious = "threat_model: honest-but-curious, "
    assert read(8, privacy=curious + holds)
    assert says in refusal(8, privacy=curious + broken)


def test_three_clients_are_the_fewest():
    """Of two, each learns the other's update: in a cohort, and where all others drop out."""
    assert read(3).threshold == 3
    assert "at least 3" in refusal(2)
    curious = "colluders: 0, threat_model: honest-but-curious, threshold: "
    assert read(8, privacy=f"{curious}3").threshold == 3
    assert "take 3 or more" in refusal(8, privacy=f"{curious}2")


def test_the_complete_graph_ends_at_a_hundred():
    """Above, no threshold stands an aggregator that lies, and how many drop out counts."""
    assert "which are made for up to 100, but a cohort has 101: say threat_model" in refusal(101)
    curious = "threat_model: honest-but-curious"
    assert read(101, privacy=curious).dropout_rate == 0.05
    assert read(101, privacy=f"{curious}, dropout_rate: 0.2").dropout_rate == 0.2
    assert "at most 100" in refusal(100, privacy=f"{curious}, dropout_rate: 0.2")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("federation: {method: product}\n", "method: product looks at single updates"),
        ("federation: {method: share-a}\n", "share-a keeps factors at their sites"),
        ("federation: {robust: median}\n", "robust: median looks at single updates"),
        ("federation: {robust: norm-bound}\n", "take none"),
        ("wire: {codec: int8}\n", "wire.codec: int8 rounds"),
        ("wire: {codec: bf16}\n", "take fp32"),
        ("wire: {compress: true}\n", "nothing to compress"),
        ("federation: {evaluate_every: 1}\n", "federation.evaluate_every: 0"),
        ("simulation: {engine: ray}\n", "take in-process"),
        ("federation: {quorum: 2}\n", "federation.quorum is 2, but no sum of fewer than"),
    ],
)
def test_what_needs_single_updates_is_refused(rest, says):
    """The reason is given, and what to take."""
    assert says in refusal(rest=rest)


def test_with_unit_client_sums_are_of_cohorts_that_all_know():
    """A threshold needs a size, and the noise a clip that is said."""
    unit, poisson = "client", "federation: {cohort_size: 4, cohort_sampling: poisson}\n"
    budget = "epsilon: 8, delta: 1e-3"
    assert "take fixed-size" in refusal(
        8, unit=unit, privacy=f"{budget}, clip_norm: 1", rest=poisson
    )
    assert "unit: client needs clip_norm" in refusal(8, unit=unit, privacy=budget)


@pytest.mark.parametrize(
    "key", ["threat_model: honest-but-curious", "colluders: 0", "threshold: 3", "dropout_rate: 0.1"]
)
def test_keys_of_secure_sums_have_no_effect_without_them(key):
    """What would be ignored is refused by name."""
    says = re.escape(f"{key.split(':')[0]} has no effect without secure_aggregation: true")
    with pytest.raises(RecipeError, match=says):
        Recipe.from_yaml(f"datasets: [{{path: a}}]\nprivacy: {{unit: none, {key}}}\n")
