"""Client-level privacy at the aggregator: each round is charged, then noised."""

from fedlora.adapter import AdapterUpdate
from fedlora.privacy.central import noised_mean
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.mechanism import KeyStream
from fedlora.privacy.renyi_filter import RenyiFilter
from fedlora.runtime.charges import round_charge
from fedlora.runtime.run_folder import RunFolder

ACCOUNT = "clients"


def noised_round(
    update: AdapterUpdate, run: RunFolder, *, number: int, folded: int
) -> AdapterUpdate:
    """Return the mean of a round's clipped updates as it may be seen.

    The ledger is beside the run folders, and counts all of their runs. A round that is played again
    is charged again.

    Raises:
        BudgetError: the account does not allow it.
        StorageError: the ledger cannot be written.
    """
    recipe = run.recipe()
    ledger = Ledger(run.path.parent / "ledger.sqlite", new_filter=RenyiFilter)
    if ACCOUNT not in ledger.balances():
        ledger.open_account(ACCOUNT, epsilon=None, delta=recipe.privacy.delta or 0)
    whole = round_charge(recipe, rounds=recipe.federation.rounds)
    ledger.reserve(ACCOUNT, run.name, maximum=[whole])
    committed = ledger.commit(
        ACCOUNT,
        run.name,
        purpose="train",
        number=number,
        charge=round_charge(recipe),
        data="",
    )
    stream = KeyStream.secure()
    if recipe.simulation.reproducible_noise:
        stream = KeyStream.reproducible(f"{recipe.seed}/clients/{number}")
    return noised_mean(
        update, committed.redeem(), folded=folded, expected=recipe.cohort_size, source=stream
    )
