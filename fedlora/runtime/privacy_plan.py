"""What privacy asks of a run, before any data is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.errors import BudgetError, RecipeError
from fedlora.privacy.accounting.calibration import signal_to_noise
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.central import sensitivity
from fedlora.privacy.charge import Charge
from fedlora.recipe import Recipe
from fedlora.runtime.charges import (
    readers_epsilon,
    round_charge,
    run_charges,
    secure_noise,
)
from fedlora.training.base_model import describe

EPSILONS = (1.0, 3.0, 8.0)
"""What a plan compares with the recipe's own."""

LEAST_SIGNAL = 0.05
"""Signal over noise of the whole run, at best, below which a plan is absurd. The study of privacy
kept 40 % of the gain at 1.2."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One budget: of sites that declare the same number of records or, with clients, of all."""

    sites: Sequence[str]
    records: int | None
    """Of each site; none where a unit is a client."""
    sampling_rate: float
    """Probability with which a record is in a step, or a client in a round."""
    epsilon: float
    readers_epsilon: float
    """Against those who see releases and do not know who took part, if all who are drawn answer."""
    noise_multiplier: float
    """Over the sensitivity; infinite where no noise is enough. With secure aggregation it is that
    of the fewest honest shares, and the signal is over the noise of all."""
    step_signal: float
    """Norm of a step's, or round's, clipped sum over that of its noise, at best."""
    run_signal: float
    """Likewise for all of them together."""
    account_epsilon: float
    """What the filter of a ledger's account counts the run as: more, since the runs to come may be
    chosen in the light of this one."""


def lines(recipe: Recipe, *, compared: Sequence[float] = EPSILONS) -> list[Line]:
    """Return a line for each budget, at each number of records that sites declare.

    Args:
        recipe: says the run's own budget.
        compared: budgets besides it.

    Raises:
        RecipeError: the recipe protects nothing.
        BudgetError: no noise is enough for the recipe's own budget.
        BaseModelError: the base model is not there.
    """
    if recipe.privacy.unit == "none":
        raise RecipeError(
            "privacy.unit is none, so nobody adds noise. To plan it, set privacy.unit to example "
            "or client, with epsilon, delta, and records or clip_norm."
        )
    parameters = describe(recipe).spec.part(recipe.federation.facts.trained(1)).size
    budgets = sorted({*compared, recipe.privacy.epsilon or 0})
    return [
        _line(recipe, sites, epsilon=epsilon, parameters=parameters)
        for sites in _groups(recipe)
        for epsilon in budgets
    ]


def whole_signal(recipe: Recipe, planned: Sequence[Line]) -> float:
    """Return the signal over the noise, at best, of all that the run releases under its budget.

    Sites that add noise of their own: their signals add up, and noise as its square root.
    """
    own = [line for line in planned if line.epsilon == recipe.privacy.epsilon]
    if recipe.privacy.unit == "client":
        return own[0].run_signal
    noise = sum(len(line.sites) / line.run_signal**2 for line in own)
    return len(recipe.site_names) / math.sqrt(noise)


def absurdity(recipe: Recipe, planned: Sequence[Line]) -> str:
    """Return why a run is absurd and what to change; nothing if it is not."""
    signal = whole_signal(recipe, planned)
    if signal >= LEAST_SIGNAL:
        return ""
    more = {"example": "larger batches, more records", "client": "larger cohorts"}
    return (
        f"The noise drowns all that could be learned: over the whole run the signal is at best "
        f"{signal:.2g} of the noise, and {LEAST_SIGNAL:g} is the least that is planned. Take "
        f"{more[recipe.privacy.unit]}, more sites, fewer trained parameters (lora_r, "
        "lora_target_modules), or a larger epsilon."
    )


def _groups(recipe: Recipe) -> Sequence[Sequence[str]]:
    """Return the sites that need the same noise, together."""
    if recipe.privacy.unit == "client":
        return [recipe.site_names]
    groups: dict[int | None, list[str]] = {}
    for site in recipe.site_names:
        groups.setdefault(recipe.records_of(site), []).append(site)
    return list(groups.values())


def _line(recipe: Recipe, sites: Sequence[str], *, epsilon: float, parameters: int) -> Line:
    own, site, of_clients = recipe.privacy.epsilon, sites[0], recipe.privacy.unit == "client"
    expected = recipe.cohort_size if of_clients else recipe.batch_size
    steps = recipe.federation.rounds if of_clients else recipe.total_steps
    privacy = recipe.privacy.model_copy(update={"epsilon": epsilon})
    recipe = recipe.model_copy(update={"privacy": privacy})
    noise = over_clip = math.inf
    readers = account = math.nan
    try:
        if of_clients:
            charges: Sequence[Charge] = [round_charge(recipe, rounds=steps)]
        else:
            charges = run_charges(recipe, site)
    except BudgetError:
        if epsilon == own:
            raise
    else:
        noise = charges[0].noise_multiplier
        over_clip = noise * sensitivity(1.0, charges[0].adjacency)
        if recipe.privacy.secure_aggregation and (shared := secure_noise(recipe)):
            over_clip *= math.sqrt(recipe.cohort_size / shared.shares)  # if none drops out
        readers = readers_epsilon(recipe)
        counted = RenyiFilter(epsilon=epsilon, delta=privacy.delta or 0)
        account = counted.epsilon_of(charges)
    step_signal, run_signal = (
        signal_to_noise(
            expected_batch=expected,
            noise_multiplier=over_clip,
            parameters=parameters,
            steps=count,
        )
        for count in (1, steps)
    )
    return Line(
        sites=sites,
        records=recipe.records_of(site),
        sampling_rate=recipe.participation_rate if of_clients else recipe.sampling_rate(site),
        epsilon=epsilon,
        readers_epsilon=readers,
        noise_multiplier=noise,
        step_signal=step_signal,
        run_signal=run_signal,
        account_epsilon=account,
    )
