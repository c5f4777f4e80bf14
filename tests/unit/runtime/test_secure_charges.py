"""What client-level privacy with secure aggregation costs, against whom, and what is said of it."""

import math

import pytest

from fedlora.errors import BudgetError
from fedlora.privacy.accounting.calibration import epsilon, noise_multiplier
from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.central_budget import account_of
from fedlora.runtime.charges import epsilon_against, round_charge, secure_noise
from fedlora.runtime.privacy_statement import statement

RECIPE = """
datasets: [{path: x}]
privacy: {unit: client, epsilon: 4, delta: 1e-3, clip_norm: 0.5, secure_aggregation: true}
federation: {sites: 8, rounds: 20, local_steps: 1, evaluate_every: 0}
"""


def recipe_of(*overrides: str) -> Recipe:
    return Recipe.from_yaml(RECIPE, overrides=list(overrides))


def whole(recipe: Recipe) -> float:
    charge = round_charge(recipe, rounds=recipe.federation.rounds)
    return epsilon([charge], delta=recipe.privacy.delta)


def test_a_round_s_charge_tells_what_is_drawn():
    """Skellam noise, on as many steps to the clip norm as fit into 32 bits with it."""
    recipe = recipe_of()
    charge, noise = round_charge(recipe, rounds=3), secure_noise(recipe)
    assert (charge.mechanism, charge.adjacency, charge.steps) == ("skellam", "zero-out", 3)
    assert charge.sensitivity == 0.5
    assert noise.deviation == charge.noise_multiplier
    assert noise.shares == recipe.threshold - recipe.colluders == 4
    fixed = FixedPoint(clients=8, clip_norm=0.5, noise=noise)
    assert fixed.steps == charge.granularity
    assert account_of(recipe) == "clients-zero-out"


@pytest.mark.parametrize("budget", ["0.5", "4", "20"])
def test_the_whole_run_costs_its_budget(budget):
    """By the accountant, and a little more noise than a trusted aggregator with normal noise."""
    recipe = recipe_of(f"privacy.epsilon={budget}")
    assert 0.99 * float(budget) < whole(recipe) <= float(budget)
    normal = noise_multiplier(epsilon=float(budget), delta=1e-3, sampling_rate=1, steps=20)
    assert 1 < round_charge(recipe).noise_multiplier / normal < 1.2


def test_a_cohort_that_is_drawn_costs_no_more():
    """A client takes part with zeros: nobody takes its place."""
    drawn = recipe_of("federation.sites=30", "federation.cohort_size=8")
    assert round_charge(drawn) == round_charge(recipe_of())


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_epsilon_grows_with_the_shares_that_are_known(colluders):
    """It is the run's against those that were taken for colluders, and more against one more."""
    recipe = recipe_of(f"privacy.colluders={colluders}")
    of = [epsilon_against(recipe, knowing=knowing) for knowing in range(recipe.threshold + 1)]
    assert of[:-1] == sorted(of[:-1])
    assert of[colluders] == whole(recipe) <= 4 < of[colluders + 1]
    assert of[recipe.threshold] == math.inf


def test_against_a_peer_the_shares_that_are_left_count():
    """Without colluders t - 1 shares of t: a noise smaller by the root of their ratio."""
    recipe = recipe_of("privacy.colluders=0")
    charge = round_charge(recipe, rounds=20)
    shares = recipe.threshold
    divided = noise_for(epsilon_against(recipe, knowing=1), like=recipe)
    wanted = charge.noise_multiplier * math.sqrt((shares - 1) / shares)
    assert divided == pytest.approx(wanted, rel=2e-3)


def noise_for(budget: float, *, like: Recipe) -> float:
    """Return what noise a run's budget asks for."""
    update = {"privacy": like.privacy.model_copy(update={"epsilon": budget})}
    return round_charge(like.model_copy(update=update)).noise_multiplier


def test_large_cohorts_count_those_that_may_drop_out():
    """Above 100 a tenth may be lost before the roster, and a tenth after it."""
    large = recipe_of(
        "federation.sites=200",
        "privacy.delta=1e-4",
        "privacy.threat_model=honest-but-curious",
        "privacy.dropout_rate=0.1",
        "privacy.colluders=20",
    )
    assert secure_noise(large).shares == 160 - 20


def test_cohorts_that_no_graph_keeps_together_are_refused():
    """No share of the noise would be unknown to the colluders."""
    recipe = recipe_of(
        "federation.sites=200",
        "privacy.delta=1e-4",
        "privacy.threat_model=honest-but-curious",
        "privacy.dropout_rate=0.9",
        "privacy.colluders=20",
    )
    with pytest.raises(BudgetError, match="No sparse graph"):
        round_charge(recipe)


def test_without_client_level_privacy_there_is_no_noise():
    """Secure sums of other units are exact."""
    assert secure_noise(recipe_of("privacy={unit: none, secure_aggregation: true}")) is None


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("malicious-aggregator", "even if it does not"),
        ("honest-but-curious", "as long as it keeps"),
    ],
)
def test_the_statement_trusts_no_aggregator(model, says):
    """It names who is trusted, what each adversary's ε is, the accountant and the wrap-around."""
    said = " ".join(statement(recipe_of(f"privacy.threat_model={model}"), []))
    assert "no aggregator is trusted" in said
    assert says in said
    assert "up to 2 clients that tell it all they know" in said
    assert "which knows its own share" in said
    assert "RDP (Agarwal et al. 2021)" in said
    assert "wraps around" in said
    assert "aggregator itself is trusted" not in said
    assert "floating-point" not in said


def test_the_statement_names_each_epsilon():
    """As they are computed."""
    recipe = recipe_of("privacy.colluders=0")
    said = " ".join(statement(recipe, []))
    assert "ε 4 is against the aggregator." in said
    assert f"own share, {epsilon_against(recipe, knowing=1):.3g}." in said
