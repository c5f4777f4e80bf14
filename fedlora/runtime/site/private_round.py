"""A private round at a site: tested without data, charged, and only then drawn."""

import torch

from fedlora.adapter import AdapterState
from fedlora.runtime.charges import held_out_records
from fedlora.runtime.site.budget import SiteBudget
from fedlora.runtime.site.memory import SiteMemory
from fedlora.runtime.site.private_steps import private_steps, self_test
from fedlora.runtime.site.site import Site


def trained_privately(
    site: Site,
    received: AdapterState,
    *,
    run: str,
    number: int,
    correction: AdapterState | None = None,
) -> AdapterState:
    """Return what a private round makes of the adapter: all of it that may leave the site.

    Args:
        site: which trains.
        received: the adapter to begin with.
        run: the run's name.
        number: of the round.
        correction: of each step; made of what is private already, or public.

    Raises:
        BudgetError: the site's account does not allow it.
        RunError: the self-test failed, or what the site remembers cannot be read.
        StorageError: the ledger, or what the site must remember, cannot be written.
    """
    recipe, budget = site.recipe, SiteBudget(site, run)
    self_test(recipe, site.name)
    memory = SiteMemory(site.name, run)
    name = f"clip-{recipe.federation.facts.turn(number)}"
    bound = memory.recall(name, before=number)
    clip_norm = recipe.max_grad_norm if bound is None else float(bound)
    charge = budget.training(number, clip_norm=clip_norm).redeem()
    source = budget.stream(f"train/{number}")
    mechanism = private_steps(recipe, charge, source)
    result = site.train_round_privately(
        received, number=number, mechanism=mechanism, source=source, correction=correction
    )
    if recipe.privacy.clip_quantile is not None:
        bound = torch.tensor([mechanism.clip_norm], dtype=torch.float64)
        memory.keep(name, bound, number=number)
    return result.state


def evaluated_privately(
    site: Site, state: AdapterState | None, *, run: str, number: int
) -> dict[str, int | float]:
    """Return the noised sum of clipped held-out losses, and the public number to divide it by.

    Raises:
        BudgetError: the site's account does not allow it.
        StorageError: the ledger cannot be written.
    """
    budget = SiteBudget(site, run)
    charge = budget.evaluation(number).redeem()
    total = site.clipped_loss_sum(state, largest=charge.sensitivity)
    draw = float(budget.stream(f"evaluate/{number}").gaussian(1))
    return {
        "eval_loss_sum": total + charge.noise_multiplier * charge.sensitivity * draw,
        "eval_tokens": held_out_records(site.recipe, site.name),
    }
