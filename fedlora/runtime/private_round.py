"""A private round at a site: charged first, then drawn."""

from fedlora.adapter import AdapterState
from fedlora.runtime.charges import held_out_records
from fedlora.runtime.site import Site
from fedlora.runtime.site_budget import SiteBudget


def trained_privately(site: Site, received: AdapterState, *, run: str, number: int) -> AdapterState:
    """Return what a private round makes of the adapter: all of it that may leave the site.

    Raises:
        BudgetError: the site's account does not allow it.
        RunError: the self-test failed.
        StorageError: the ledger cannot be written.
    """
    budget = SiteBudget(site, run)
    charge = budget.training(number).redeem()
    source = budget.stream(f"train/{number}")
    return site.train_round_privately(received, number=number, charge=charge, source=source).state


def evaluated_privately(
    site: Site, state: AdapterState, *, run: str, number: int
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
