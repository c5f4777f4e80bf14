"""What sites and the aggregator share when they charge a run: a ledger, and a source of noise."""

from collections.abc import Sequence
from pathlib import Path

from fedlora.privacy.accounting.renyi_filter import RenyiFilter
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanism import KeyStream
from fedlora.recipe import Recipe


def reserved(
    path: Path, account: str, *, run: str, recipe: Recipe, maximum: Sequence[Charge]
) -> Ledger:
    """Return the ledger in which the run has reserved the most that it will draw.

    An account that is not open yet is opened without a limit.

    Raises:
        BudgetError: the account does not allow it.
        StorageError: the ledger cannot be written.
    """
    ledger = Ledger(path, new_filter=RenyiFilter)
    if account not in ledger.balances():
        ledger.open_account(account, epsilon=None, delta=recipe.privacy.delta or 0)
    ledger.reserve(account, run, maximum=maximum)
    return ledger


def noise_stream(recipe: Recipe, name: str) -> KeyStream:
    """Return where the draws of one charge come from."""
    if recipe.simulation.reproducible_noise:
        return KeyStream.reproducible(f"{recipe.seed}/{name}")
    return KeyStream.secure()
