"""What a ledger's rows amount to: what each account has spent, and what its runs have reserved."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedlora.errors import BudgetError
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger.rows import (
    AccountRow,
    ChargeRow,
    ClosureRow,
    Purpose,
    ReservationRow,
    Row,
)

Steps = Counter[Charge]
"""Steps of each mechanism: a charge of one step, whose sensitivity counts as 1.

What a step costs is decided by its noise over its sensitivity; the sensitivity itself may move from
round to round."""


def as_steps(charges: Iterable[Charge]) -> Steps:
    """Return the steps of each mechanism."""
    steps: Steps = Counter()
    for charge in charges:
        steps[replace(charge, sensitivity=1.0, steps=1)] += charge.steps
    return steps


def as_charges(steps: Steps) -> tuple[Charge, ...]:
    """Return one charge for each mechanism."""
    return tuple(replace(mechanism, steps=count) for mechanism, count in steps.items())


class Filter(Protocol):
    """Says what an account's budget allows, of charges chosen one after another."""

    def allows(self, charges: Sequence[Charge]) -> bool:
        """Whether all of these together stay within ε and δ.

        Equal mechanisms come as one charge of all their steps.
        """
        ...


class NewFilter(Protocol):
    """Makes the filter of an account from its budget."""

    def __call__(self, *, epsilon: float, delta: float) -> Filter: ...


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Where an account stands; each tuple has one charge for each mechanism."""

    epsilon: float | None
    delta: float
    spent: tuple[Charge, ...]
    reserved: Mapping[str, tuple[Charge, ...]]
    """What each run that is not closed has still to draw."""


@dataclass(kw_only=True)
class Run:
    """What a run has reserved of an account, and what it drew."""

    maximum: tuple[Charge, ...]
    left: Steps
    """Reserved and not drawn."""
    attempts: Counter[tuple[Purpose, int]] = field(default_factory=Counter)
    """Charges of each round and query."""
    closed: bool = False


@dataclass(kw_only=True)
class Account:
    """A budget, what was spent of it, and the runs that may draw on it."""

    name: str
    epsilon: float | None
    delta: float
    new_filter: NewFilter
    spent: Steps = field(default_factory=Counter)
    runs: dict[str, Run] = field(default_factory=dict)

    def run(self, name: str) -> Run:
        """Return a run.

        Raises:
            BudgetError: it has reserved nothing.
        """
        if name not in self.runs:
            raise BudgetError(
                f"Run {name} has reserved nothing of account {self.name}. These have: "
                f"{', '.join(self.runs) or 'none'}."
            )
        return self.runs[name]

    def open_run(self, name: str) -> Run:
        """Return a run that is not closed.

        Raises:
            BudgetError: it has reserved nothing, or is closed.
        """
        run = self.run(name)
        if run.closed:
            raise BudgetError(
                f"Run {name} is closed: it can draw no more on account {self.name}. Start a new "
                "run."
            )
        return run

    def require_leave(self, wanted: Steps, *, refusal: str) -> None:
        """Do nothing if the filter allows this beside all that is spent and reserved.

        Raises:
            BudgetError: it does not; the message begins with ``refusal``.
        """
        if self.epsilon is None or not wanted:
            return
        promised = self.spent + wanted
        for left in self._reserved().values():
            promised += left
        budget = self.new_filter(epsilon=self.epsilon, delta=self.delta)
        if not budget.allows(as_charges(promised)):
            raise BudgetError(
                f"{refusal}. Account {self.name} has ε {shown(self.epsilon)} at δ {self.delta:g}; "
                f"its runs with a reservation: {', '.join(self._reserved()) or 'none'}. Close "
                "those that have ended, or plan fewer rounds, a lower sampling rate or more noise; "
                "fedlora privacy plan prints what an account counts a run as."
            )

    def balance(self) -> Balance:
        """Return where the account stands."""
        return Balance(
            epsilon=self.epsilon,
            delta=self.delta,
            spent=as_charges(self.spent),
            reserved={name: as_charges(left) for name, left in self._reserved().items()},
        )

    def _reserved(self) -> dict[str, Steps]:
        return {name: run.left for name, run in self.runs.items() if run.left and not run.closed}


class Book:
    """The accounts that rows make when they are entered in their order."""

    def __init__(self, new_filter: NewFilter) -> None:
        self._new_filter = new_filter
        self.accounts: dict[str, Account] = {}

    def account(self, name: str) -> Account:
        """Return an account.

        Raises:
            BudgetError: it is not open.
        """
        if name not in self.accounts:
            raise BudgetError(
                f"Account {name} is not open; these are: {', '.join(self.accounts) or 'none'}."
            )
        return self.accounts[name]

    def enter(self, row: Row) -> None:
        """Enter one more row."""
        if isinstance(row, AccountRow):
            self.accounts[row.account] = Account(
                name=row.account,
                epsilon=row.epsilon,
                delta=row.delta,
                new_filter=self._new_filter,
            )
            return
        account = self.account(row.account)
        match row:
            case ReservationRow():
                account.runs[row.run] = Run(maximum=row.maximum, left=as_steps(row.maximum))
            case ChargeRow():
                run, drawn = account.run(row.run), as_steps([row.charge])
                run.left = run.left - drawn
                run.attempts[row.purpose, row.number] += 1
                account.spent.update(drawn)
            case ClosureRow():
                account.run(row.run).closed = True


def shown(epsilon: float | None) -> str:
    """Return ε as errors name it."""
    return "without limit" if epsilon is None else f"{epsilon:g}"
