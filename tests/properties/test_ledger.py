"""The ledger against a model that is obvious: lists of steps, summed afresh at each question."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.errors import BudgetError
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger import Ledger
from simulations.campaigns.ledger import StepFilter

BUDGET = 8


@dataclass
class Model:
    """What each run reserved and drew."""

    reserved: dict[str, int] = field(default_factory=dict)
    drawn: dict[str, list[int]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    def promised(self) -> int:
        """Return what is spent, and what runs that are not closed may still draw."""
        spent = sum(sum(steps) for steps in self.drawn.values())
        left = {run: self.reserved[run] - sum(self.drawn[run]) for run in self.reserved}
        return spent + sum(max(0, left[run]) for run in self.reserved if run not in self.closed)

    def reserve(self, run: str, steps: int) -> bool:
        if run in self.reserved:
            return run not in self.closed and self.reserved[run] == steps
        if self.promised() + steps > BUDGET:
            return False
        self.reserved[run], self.drawn[run] = steps, []
        return True

    def commit(self, run: str, steps: int) -> bool:
        if run not in self.reserved or run in self.closed:
            return False
        covered = sum(self.drawn[run]) + steps <= self.reserved[run]
        self.drawn[run].append(steps)
        if covered or self.promised() <= BUDGET:
            return True
        self.drawn[run].pop()
        return False

    def close(self, run: str, _: int) -> bool:
        if run in self.reserved:
            self.closed.add(run)
        return run in self.reserved


def charge(steps: int) -> Charge:
    return Charge.of_steps(steps, sensitivity=1.0, noise_multiplier=1.0, sampling_rate=0.1)


def works(ledger: Ledger, operation: str, run: str, steps: int) -> bool:
    """Return whether the ledger did as asked."""
    try:
        if operation == "reserve":
            ledger.reserve("a", run, maximum=[charge(steps)])
        elif operation == "commit":
            ledger.commit("a", run, purpose="train", number=1, charge=charge(steps), data="")
        else:
            ledger.close("a", run)
    except BudgetError:
        return False
    return True


operations = st.tuples(
    st.sampled_from(["reserve", "commit", "commit", "close"]),
    st.sampled_from(["r", "s"]),
    st.integers(1, 5),
)


@settings(max_examples=25)
@given(asked=st.lists(operations, min_size=3, max_size=12))
def test_the_ledger_does_what_the_model_does(asked):
    """It allows and refuses the same, keeps the same rows, and never promises past the budget."""
    model = Model()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        ledgers = [Ledger(path, new_filter=StepFilter) for _ in range(2)]
        ledgers[0].open_account("a", epsilon=BUDGET, delta=1e-6)
        for turn, (operation, run, steps) in enumerate(asked):
            expected = getattr(model, operation)(run, steps)
            assert works(ledgers[turn % 2], operation, run, steps) == expected
            assert model.promised() <= BUDGET
        rows = ledgers[0].rows("a")
        for run, drawn in model.drawn.items():
            assert [row.charge.steps for row in rows if row.run == run] == drawn
        balance = Ledger(path, new_filter=StepFilter).balances()["a"]
        assert sum(each.steps for each in balance.spent) == sum(map(sum, model.drawn.values()))
        assert balance == ledgers[1].balances()["a"]
