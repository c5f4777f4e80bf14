"""What privacy asks of a run, before any data is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.errors import BudgetError, RecipeError
from fedlora.privacy.accounting.calibration import signal_to_noise
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.recipe import Recipe
from fedlora.runtime.charges import run_charges, training_charge
from fedlora.training.base_model import describe

EPSILONS = (1.0, 3.0, 8.0)
"""What a plan compares with the recipe's own."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One budget, at sites that declare the same number of records."""

    sites: Sequence[str]
    records: int
    sampling_rate: float
    epsilon: float
    noise_multiplier: float
    """Infinite where no noise is enough."""
    step_signal: float
    """Norm of a step's clipped sum over that of its noise, at best."""
    run_signal: float
    """Likewise for all steps together."""
    account_epsilon: float
    """What the filter of a site's account counts the run as: more, since the runs to come may be
    chosen in the light of this one."""


def lines(recipe: Recipe) -> list[Line]:
    """Return a line for each budget, at each number of records that sites declare.

    Raises:
        RecipeError: the recipe does not protect examples.
        BudgetError: no noise is enough for the recipe's own budget.
        BaseModelError: the base model is not there.
    """
    if recipe.privacy.unit != "example":
        raise RecipeError(
            f"privacy.unit is {recipe.privacy.unit}, so sites add no noise. To plan it, set "
            "privacy.unit=example, and epsilon, delta and records."
        )
    parameters = describe(recipe).spec.part(recipe.federation.facts.trained(1)).size
    groups: dict[int, list[str]] = {}
    for site in recipe.site_names:
        groups.setdefault(recipe.records_of(site) or 0, []).append(site)
    budgets = sorted({*EPSILONS, recipe.privacy.epsilon or 0})
    return [
        _line(recipe, sites, epsilon=epsilon, parameters=parameters)
        for sites in groups.values()
        for epsilon in budgets
    ]


def _line(recipe: Recipe, sites: Sequence[str], *, epsilon: float, parameters: int) -> Line:
    site, own = sites[0], recipe.privacy.epsilon
    privacy = recipe.privacy.model_copy(update={"epsilon": epsilon})
    recipe = recipe.model_copy(update={"privacy": privacy})
    try:
        noise = training_charge(recipe, site, steps=recipe.total_steps).noise_multiplier
        account = RenyiFilter(epsilon=epsilon, delta=privacy.delta or 0)
        account_epsilon = account.epsilon_of(run_charges(recipe, site))
    except BudgetError:
        if epsilon == own:
            raise
        noise, account_epsilon = math.inf, math.nan
    step, run = (
        signal_to_noise(
            expected_batch=recipe.batch_size,
            noise_multiplier=noise,
            parameters=parameters,
            steps=steps,
        )
        for steps in (1, recipe.total_steps)
    )
    return Line(
        sites=sites,
        records=recipe.records_of(site) or 0,
        sampling_rate=recipe.sampling_rate(site),
        epsilon=epsilon,
        noise_multiplier=noise,
        step_signal=step,
        run_signal=run,
        account_epsilon=account_epsilon,
    )
