"""What a run costs each site in privacy: the charges that follow from the recipe alone."""

import math
from dataclasses import replace

from fedlora.errors import BudgetError, SecureSumError
from fedlora.privacy.accounting.calibration import epsilon, least_charge, noise_multiplier
from fedlora.privacy.central import sensitivity
from fedlora.privacy.charge import Adjacency, Charge
from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint, Noise
from fedlora.recipe import Recipe
from fedlora.runtime.secure_terms import terms_of

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
    """Return the charge of rounds whose updates are clipped, and whose sum is noised.

    Against those who know who takes part, as the aggregator does, drawing a cohort counts for
    nothing. Where all take part, or each by a draw of its own, neighbours have one client more or
    less; where a cohort of fixed size is drawn, another client takes the place of one. With secure
    aggregation the client takes part with its share of the noise and an update of zero.

    Raises:
        BudgetError: no noise is enough.
    """
    privacy, federation = recipe.privacy, recipe.federation
    if privacy.secure_aggregation:
        return replace(_secure_charge(recipe), steps=rounds)
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


def secure_noise(recipe: Recipe) -> Noise | None:
    """Return the noise that the clients of a secure sum share; none unless they are the unit.

    Raises:
        BudgetError: no noise is enough.
    """
    if recipe.privacy.unit != "client":
        return None
    return _noise(recipe, _secure_charge(recipe).noise_multiplier)


def epsilon_against(recipe: Recipe, *, knowing: int) -> float:
    """Return what a run costs a client against those who know some shares of the noise.

    It is the run's ε for those whom the recipe takes for colluders, less against fewer, and holds
    in rounds with the fewest clients whose sum is opened.

    Args:
        recipe: of a run with client-level privacy and secure aggregation.
        knowing: clients whose shares are known: 0 against the aggregator and readers, 1 against a
            client that keeps to itself what it knows.

    Raises:
        BudgetError: no noise is enough.
    """
    unknown = terms_of(recipe).fewest_summed - knowing
    if unknown < 1:
        return math.inf
    charge = round_charge(recipe, rounds=recipe.federation.rounds)
    larger = math.sqrt(unknown / _honest_shares(recipe))
    seen = replace(charge, noise_multiplier=charge.noise_multiplier * larger)
    return epsilon([seen], delta=recipe.privacy.delta or 0)


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


def _secure_charge(recipe: Recipe) -> Charge:
    """Return the charge of one round of secure sums with noise.

    Raises:
        BudgetError: no noise is enough, or none that 32 bits hold.
    """
    privacy, rounds = recipe.privacy, recipe.federation.rounds
    clip_norm = privacy.clip_norm or 0

    def charge(noise: float) -> Charge:
        fixed = FixedPoint(
            clients=recipe.cohort_size, clip_norm=clip_norm, noise=_noise(recipe, noise)
        )
        return Charge(
            unit="client",
            adjacency="zero-out",
            sensitivity=sensitivity(clip_norm, "zero-out"),
            noise_multiplier=noise,
            sampling_rate=1.0,
            steps=rounds,
            sampler="all",
            granularity=fixed.steps,
        )

    try:
        found = least_charge(charge, epsilon=privacy.epsilon or 0, delta=privacy.delta or 0)
    except SecureSumError as error:
        raise BudgetError(str(error)) from None
    return replace(found, steps=1)


def _noise(recipe: Recipe, multiplier: float) -> Noise:
    return Noise(deviation=multiplier, shares=_honest_shares(recipe))


def _honest_shares(recipe: Recipe) -> int:
    """Return how many shares of noise an opened sum has that no colluder knows, at least.

    Raises:
        SecureSumError: no graph promises any.
    """
    return terms_of(recipe).fewest_summed - recipe.colluders


def _queries(recipe: Recipe) -> int:
    return len(recipe.federation.evaluated_rounds)
