"""Client-level privacy at the aggregator: each round is charged, then noised."""

from fedlora.adapter import AdapterUpdate
from fedlora.privacy.central import noised_mean
from fedlora.runtime.account import noise_stream, reserved
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
    whole = round_charge(recipe, rounds=recipe.federation.rounds)
    path = run.path.parent / "ledger.sqlite"
    ledger = reserved(path, ACCOUNT, run=run.name, recipe=recipe, maximum=[whole])
    committed = ledger.commit(
        ACCOUNT,
        run.name,
        purpose="train",
        number=number,
        charge=round_charge(recipe),
        data="",
    )
    stream = noise_stream(recipe, f"clients/{number}")
    return noised_mean(
        update, committed.redeem(), folded=folded, expected=recipe.cohort_size, source=stream
    )
