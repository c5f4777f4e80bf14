"""What sites and the aggregator share when they charge a run: a ledger, and a source of noise."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedlora.errors import BudgetError
from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanism import KeyStream
from fedlora.recipe import Recipe
from fedlora.runtime.site.memory import SIMULATED


def reserved(
    path: Path, account: str, *, run: str, recipe: Recipe, maximum: Sequence[Charge]
) -> Ledger:
    """Return the ledger in which the run has reserved the most that it will draw.

    An account that is not open yet is opened without a limit, unless another there has one.

    Raises:
        BudgetError: the account does not allow it; or the noise would be reproducible, and this is
            no simulation.
        StorageError: the ledger cannot be written.
    """
    if recipe.simulation.reproducible_noise and not os.environ.get(SIMULATED):
        raise BudgetError(
            "simulation.reproducible_noise protects nobody, so it is for simulations alone: set it "
            "to false."
        )
    ledger = Ledger(path, new_filter=RenyiFilter)
    balances = ledger.balances()
    if account not in balances:
        limited = [name for name, balance in balances.items() if balance.epsilon is not None]
        if limited:
            raise BudgetError(
                f"{path}: account {account}, to which run {run} would be charged, is not open, and "
                f"a limit on {', '.join(limited)} does not bound it. Open it with a limit of its "
                f"own: fedlora privacy ledger open {path} --account {account} …"
            )
        ledger.open_account(account, epsilon=None, delta=recipe.privacy.delta or 0)
    ledger.reserve(account, run, maximum=maximum)
    return ledger


def noise_stream(recipe: Recipe, name: str) -> KeyStream:
    """Return where the draws of one charge come from."""
    if recipe.simulation.reproducible_noise:
        return KeyStream.reproducible(f"{recipe.seed}/{name}")
    return KeyStream.secure()
