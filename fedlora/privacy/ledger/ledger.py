"""What privacy the site has spent, kept so that no crash, restart or restored file refunds it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fedlora.chained_file import EMPTY, Chain, ChainedFile, Head, Kind
from fedlora.errors import BudgetError
from fedlora.privacy.charge import Charge
from fedlora.privacy.ledger.book import Balance, Book, NewFilter, as_steps, shown
from fedlora.privacy.ledger.rows import (
    AccountRow,
    ChargeRow,
    ClosureRow,
    Purpose,
    ReservationRow,
    Row,
    require_budget,
    require_charge,
    row_of,
    text_of,
)

LEDGER = Kind(
    name="ledger",
    error=BudgetError,
    if_older=(
        "What is missing was spent. Put the newest database back. If it is lost, nobody knows what "
        "its accounts have left: use their data no more."
    ),
    if_broken="Nothing can be charged",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Committed:
    """Proof that a charge is on disk; only ``Ledger.commit`` makes one.

    What draws noise asks for it and takes its noise multiplier, sensitivity and steps from it, so
    that nothing else is drawn than what was charged.
    """

    row: ChargeRow
    _redeemed: list[bool] = field(default_factory=list, init=False, repr=False)

    def redeem(self) -> Charge:
        """Return what may be drawn, once.

        Raises:
            BudgetError: it was returned before; fresh noise is a new charge.
        """
        if self._redeemed:
            raise BudgetError(
                f"Run {self.row.run}, {self.row.purpose} {self.row.number}: its noise was drawn "
                "before. Fresh noise is a new charge: commit again."
            )
        self._redeemed.append(True)
        return self.row.charge


class Ledger:
    """A site's accounts: budgets, reservations and charges, as one chain of rows.

    Several processes and threads may use one file at once, each with a ledger of its own or with
    one between them.

    Guarantees:
        - What ``commit`` returned stays charged, whatever is killed or loses power after it.
        - All charges of an account together, with what its open runs still have reserved, are at
          each time allowed by the filter of its budget.
        - A database that is older than its mirror is refused at each call.
        - The same calls at the same times make the same rows and hashes.

    Args:
        path: the SQLite file, made if it is not there; its mirror is beside it.
        new_filter: makes the filter of an account that has a limit.
        clock: gives the time that rows keep.

    Raises:
        BudgetError: the chain is broken, or an older database was restored. This holds for every
            call, likewise the next.
        StorageError: the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        *,
        new_filter: NewFilter,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._file = ChainedFile(path, LEDGER)
        self._clock = clock
        self._book, self._read = Book(new_filter), EMPTY
        self.head()

    def open_account(self, account: str, *, epsilon: float | None, delta: float) -> None:
        """Open an account, or find it open with the same budget.

        Args:
            account: its name, from the operator.
            epsilon: most that all its charges together may have; none: they are only recorded.
            delta: belongs to the account, not to a charge.

        Raises:
            BudgetError: it is open with another budget, or this is none.
        """
        require_budget(account, epsilon=epsilon, delta=delta)
        with self._transaction() as chain:
            known = self._book.accounts.get(account)
            if known is None:
                row = AccountRow(account=account, epsilon=epsilon, delta=delta, time=self._time())
                chain.append(text_of(row))
            elif (known.epsilon, known.delta) != (epsilon, delta):
                raise BudgetError(
                    f"Account {account} is open with ε {shown(known.epsilon)} and δ "
                    f"{known.delta:g}; asked for are ε {shown(epsilon)} and δ {delta:g}. A budget "
                    "is for good, also one without limit; other data belongs to another site."
                )

    def reserve(self, account: str, run: str, *, maximum: Iterable[Charge]) -> None:
        """Set aside the most that a run plans to draw, before it starts.

        Reserving the same again does nothing, so a run that goes on after a stop may.

        Raises:
            BudgetError: the account does not allow it beside what is spent and reserved, is not
                open, the run has reserved another maximum, or is closed.
        """
        charges = tuple(maximum)
        for charge in charges:
            require_charge(charge)
        with self._transaction() as chain:
            known = self._book.account(account)
            if run in known.runs:
                known.open_run(run)
                if known.runs[run].maximum != charges:
                    raise BudgetError(
                        f"Run {run} has reserved another maximum of account {account}. Go on with "
                        "the recipe that it began with, or start a new run."
                    )
                return
            known.require_leave(as_steps(charges), refusal=f"Run {run} asks for more than is left")
            row = ReservationRow(account=account, run=run, maximum=charges, time=self._time())
            chain.append(text_of(row))

    def commit(
        self,
        account: str,
        run: str,
        *,
        purpose: Purpose,
        number: int,
        charge: Charge,
        data: str,
    ) -> Committed:
        """Charge a round, or a query of an evaluation, before its first draw of noise.

        It draws on what the run has reserved. What is not reserved, as when a round is played
        again, needs the filter's leave; an account without a limit has none to give. There is no
        way to take a charge back.

        Args:
            account: where it is charged.
            run: must have reserved.
            purpose: what the noise is for.
            number: of the round or query; when it was charged before, this is its next attempt.
            charge: what will be drawn.
            data: fingerprint of the data.

        Raises:
            BudgetError: the account does not allow it, or the run has not reserved or is closed.
        """
        require_charge(charge)
        with self._transaction() as chain:
            known = self._book.account(account)
            opened = known.open_run(run)
            beyond = as_steps([charge]) - opened.left
            if beyond and known.epsilon is None:
                raise BudgetError(
                    f"Run {run}, {purpose} {number}: its reservation is used up, and account "
                    f"{account} has no limit that would allow more. Start a new run."
                )
            known.require_leave(
                beyond, refusal=f"Run {run}, {purpose} {number}: its reservation is used up"
            )
            row = ChargeRow(
                account=account,
                run=run,
                purpose=purpose,
                number=number,
                attempt=opened.attempts[purpose, number] + 1,
                charge=charge,
                data=data,
                time=self._time(),
            )
            chain.append(text_of(row))
        return Committed(row=row)

    def close(self, account: str, run: str) -> None:
        """End a run: what it reserved and never drew is free again. Closing again does nothing.

        Raises:
            BudgetError: the run has not reserved anything of this account.
        """
        with self._transaction() as chain:
            if not self._book.account(account).run(run).closed:
                row = ClosureRow(account=account, run=run, time=self._time())
                chain.append(text_of(row))

    def verify(self) -> Head:
        """Walk the whole chain and return its head.

        Raises:
            BudgetError: names the first row that is missing or is not what was written.
        """
        with self._file.transaction() as chain:
            for head, text in chain.after(EMPTY):
                self._row(head, text)
            return chain.head

    def require_not_older(self, seen: Head) -> None:
        """Do nothing if the ledger has grown from a head that the aggregator holds a receipt of.

        Raises:
            BudgetError: it is older, or another.
        """
        with self._transaction() as chain:
            chain.require(seen, by="the aggregator")

    def head(self) -> Head:
        """Return how far the chain has come."""
        with self._transaction() as chain:
            return chain.head

    def balances(self) -> Mapping[str, Balance]:
        """Return where each account stands."""
        with self._transaction():
            return {name: account.balance() for name, account in self._book.accounts.items()}

    def charges_of(self, account: str, run: str, *, purpose: Purpose, number: int) -> int:
        """Return how often a round or query was charged; 0 also where nothing is known of it."""
        with self._transaction():
            known = self._book.accounts.get(account)
            of_run = known.runs.get(run) if known else None
            return of_run.attempts[purpose, number] if of_run else 0

    def rows(self, account: str) -> Sequence[ChargeRow]:
        """Return an account's charges, oldest first."""
        with self._transaction() as chain:
            self._book.account(account)
            rows = (self._row(head, text) for head, text in chain.after(EMPTY))
            return [row for row in rows if isinstance(row, ChargeRow) and row.account == account]

    def export(self) -> str:
        """Return all rows as JSON lines, as ``Chain.lines``."""
        with self._transaction() as chain:
            return "".join(chain.lines())

    @contextmanager
    def _transaction(self) -> Iterator[Chain]:
        """Yield the chain, with the book brought up to its head.

        The book never runs ahead: a row is entered when it is read back, after it was committed.
        """
        with self._file.transaction() as chain:
            chain.require(self._read, by="this process")
            for head, text in chain.after(self._read):
                self._book.enter(self._row(head, text))
                self._read = head
            yield chain

    def _row(self, head: Head, text: bytes) -> Row:
        return row_of(text, where=f"{self._file.path}: row {head.count}")

    def _time(self) -> str:
        return self._clock().isoformat(timespec="seconds")
