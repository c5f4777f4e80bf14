"""Client-level privacy at the aggregator: each round is charged, then noised."""

from fedlora.adapter import AdapterState, AdapterUpdate
from fedlora.aggregation import Aggregator
from fedlora.privacy.central import ClientSum, noised_mean
from fedlora.privacy.charge import Charge
from fedlora.recipe import Recipe
from fedlora.runtime.account import noise_stream, reserved
from fedlora.runtime.charges import round_charge
from fedlora.runtime.run_folder import RunFolder


def account_of(recipe: Recipe) -> str:
    """Return the account that a run is charged to: what neighbours are differs, and does not add.

    ``clients-add-remove``, ``clients-replace-one`` where a cohort of fixed size is drawn, or
    ``clients-zero-out`` in secure sums.
    """
    return f"clients-{round_charge(recipe).adjacency}"


class ClientBudget:
    """Charges a run's rounds to the aggregator's account of clients.

    Args:
        run: its ledger is beside the run folders, and counts all of their runs.
        recipe: of the run.
        number: of the round, from 1.
    """

    def __init__(self, run: RunFolder, recipe: Recipe, *, number: int) -> None:
        self._run, self._recipe, self._number = run, recipe, number
        self._account = account_of(recipe)

    def reserve(self) -> None:
        """Reserve the most that the run will draw, unless that was done.

        Raises:
            BudgetError: the account does not allow it.
            StorageError: the ledger cannot be written.
        """
        recipe, path = self._recipe, self._run.path.parent / "ledger.sqlite"
        whole = round_charge(recipe, rounds=recipe.federation.rounds)
        self._ledger = reserved(
            path, self._account, run=self._run.name, recipe=recipe, maximum=[whole]
        )

    def charge(self) -> Charge:
        """Return what the round may draw, once its charge is on disk.

        Raises:
            BudgetError: the account does not allow it.
            StorageError: the ledger cannot be written.
        """
        return self._ledger.commit(
            self._account,
            self._run.name,
            purpose="train",
            number=self._number,
            charge=round_charge(self._recipe),
            data="",
        ).redeem()


class NoisedFirst:
    """Shows a method of aggregation one update a round: the noised mean of the clipped ones.

    So whatever the method and the server optimiser do is post-processing, by construction.

    Guarantees:
        - The run's maximum is reserved before a round's clients are asked for anything.
        - Each client's update counts the same, whatever it weighs elsewhere.
        - A round without an update is noise alone.
        - The charge is on disk before the first draw. A round that is played again is charged
          again.

    Args:
        method: what makes the round's update of it.
        run, recipe, number: as for ``ClientBudget``.
    """

    def __init__(self, method: Aggregator, run: RunFolder, recipe: Recipe, *, number: int) -> None:
        self._method, self._recipe, self._number = method, recipe, number
        self._budget = ClientBudget(run, recipe, number=number)

    def begin(self, global_adapter: AdapterState) -> None:
        """Reserve the most that the run will draw, unless that was done.

        Raises:
            BudgetError: the account does not allow it.
            StorageError: the ledger cannot be written.
        """
        self._budget.reserve()
        sent = self._recipe.federation.facts.sent(self._number)
        clip_norm = self._recipe.privacy.clip_norm or 0
        self._sum = ClientSum(global_adapter.spec.part(sent), clip_norm=clip_norm)
        self._method.begin(global_adapter)

    def add(
        self,
        update: AdapterUpdate,
        weight: float,  # noqa: ARG002 - uniform, so that no client counts more than its clip norm
        *,
        share: float = 1.0,  # noqa: ARG002 - robust rules, which give shares, are refused
    ) -> None:
        self._sum.add(update)

    def finish(self) -> AdapterUpdate:
        """Return what the method makes of the noised mean.

        Raises:
            BudgetError: the account does not allow it.
            StorageError: the ledger cannot be written.
        """
        recipe = self._recipe
        noised = noised_mean(
            self._sum,
            self._budget.charge(),
            expected=recipe.cohort_size,
            num_examples=recipe.cohort_size * recipe.examples_of_round[-1],
            source=noise_stream(recipe, f"clients/{self._number}"),
        )
        self._method.add(noised, 1.0)
        return self._method.finish()
