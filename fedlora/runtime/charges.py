"""What a run costs each site in privacy: the charges that follow from the recipe alone."""

from dataclasses import replace

from fedlora.privacy.accounting.calibration import epsilon, noise_multiplier
from fedlora.privacy.central import sensitivity
from fedlora.privacy.charge import Adjacency, Charge
from fedlora.recipe import Recipe

LARGEST_LOSS = 10.0
"""Nats per token at which the loss of a held-out record is cut in a private evaluation."""


def training_charge(recipe: Recipe, site: str, *, steps: int) -> Charge:
    """Return the charge of private training steps at a site.

    Its noise multiplier is the least with which the whole run, evaluations included, costs the site
    at most ``privacy.epsilon`` at ``privacy.delta``.

    Raises:
        BudgetError: no noise is enough.
    """
    evaluations = evaluation_charge(recipe, queries=_queries(recipe))
    multiplier = noise_multiplier(
        epsilon=recipe.privacy.epsilon or 0,
        delta=recipe.privacy.delta or 0,
        sampling_rate=recipe.sampling_rate(site),
        steps=recipe.total_steps,
        beside=(evaluations,) if evaluations.steps else (),
    )
    return Charge.of_steps(
        steps,
        sensitivity=recipe.max_grad_norm,
        noise_multiplier=multiplier,
        sampling_rate=recipe.sampling_rate(site),
    )


def evaluation_charge(recipe: Recipe, *, queries: int = 1) -> Charge:
    """Return the charge of evaluations on a site's held-out records."""
    return Charge(
        unit="example",
        adjacency="add-remove",
        sensitivity=LARGEST_LOSS,
        noise_multiplier=recipe.privacy.evaluation_noise or 0,
        sampling_rate=1.0,
        steps=queries,
        sampler="all",
    )


def run_charges(recipe: Recipe, site: str) -> tuple[Charge, ...]:
    """Return the most that a whole run draws at a site.

    Raises:
        BudgetError: as ``training_charge``.
    """
    charges = [training_charge(recipe, site, steps=recipe.total_steps)]
    if queries := _queries(recipe):
        charges.append(evaluation_charge(recipe, queries=queries))
    return tuple(charges)


def round_charge(recipe: Recipe, *, rounds: int = 1) -> Charge:
    """Return the charge of rounds whose updates are clipped and noised at the aggregator.

    Against those who know who takes part, as the aggregator does, drawing a cohort counts for
    nothing. Where all take part, or each by a draw of its own, neighbours have one client more or
    less; where a cohort of fixed size is drawn, another client takes the place of one.

    Raises:
        BudgetError: no noise is enough.
    """
    privacy, federation = recipe.privacy, recipe.federation
    chosen = federation.cohort_sampling == "fixed-size" and recipe.participation_rate < 1
    adjacency: Adjacency = "replace-one" if chosen else "add-remove"
    return Charge(
        unit="client",
        adjacency=adjacency,
        sensitivity=sensitivity(privacy.clip_norm or 0, adjacency),
        noise_multiplier=noise_multiplier(
            epsilon=privacy.epsilon or 0,
            delta=privacy.delta or 0,
            sampling_rate=1.0,
            steps=federation.rounds,
        ),
        sampling_rate=1.0,
        steps=rounds,
        sampler="all",
    )


def readers_epsilon(recipe: Recipe) -> float:
    """Return what a run costs a client against those who see releases, and know no cohort.

    It is less than the run's ε with Poisson cohorts alone, and holds if all who were drawn answer.

    Raises:
        BudgetError: no noise is enough for those who do know.
    """
    if recipe.federation.cohort_sampling != "poisson":
        return recipe.privacy.epsilon or 0
    charge = round_charge(recipe, rounds=recipe.federation.rounds)
    sampled = replace(charge, sampling_rate=recipe.participation_rate, sampler="poisson")
    return epsilon([sampled], delta=recipe.privacy.delta or 0)


def held_out_records(recipe: Recipe, site: str) -> int:
    """Return how many records a site holds out by what it declares; 0 if it declares nothing."""
    declared, share = recipe.records_of(site) or 0, recipe.val_set_size
    return max(1, round(declared * share / (1 - share))) if declared else 0


def _queries(recipe: Recipe) -> int:
    return len(recipe.federation.evaluated_rounds)
