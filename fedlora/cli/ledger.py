"""``fedlora privacy ledger``: what privacy has cost, at a site or at the aggregator."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.privacy.ledger import DEFAULT_ACCOUNT

if TYPE_CHECKING:
    from fedlora.privacy.charge import Charge
    from fedlora.privacy.ledger import Balance, ChargeRow, Ledger

app = typer.Typer(
    help="Look into a privacy ledger: a site's, or the aggregator's.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

LedgerFile = Annotated[
    Path, typer.Argument(metavar="LEDGER", help="A ledger.sqlite.", exists=True, dir_okay=False)
]
Account = Annotated[
    str,
    typer.Option(help="A site's is `default`; see `show` for the aggregator's."),
]
_WIDEST = 1_000
_EXPLAINED = (
    "charges: more than rounds where a round was played again, which is paid again. noise: "
    "standard deviation over the sensitivity. ε: as the account counts, more than a run's own "
    "since later runs may be chosen in its light (fedlora privacy plan prints both); of this line "
    "alone, they do not simply add up."
)


@app.command("open")
def open_account(
    path: Annotated[
        Path, typer.Argument(metavar="LEDGER", help="A ledger.sqlite, made if missing.")
    ],
    epsilon: Annotated[float, typer.Option(help="Most that all runs together may cost.")],
    delta: Annotated[float, typer.Option(help="At most 1 / (10 · records).")],
    records: Annotated[
        int,
        typer.Option(min=1, help="Training records of the site, or clients: a rounded number."),
    ],
    account: Account = DEFAULT_ACCOUNT,
) -> None:
    """Open a budget account, before the first run.

    Without it the first run opens one that only records. A budget is for good.
    """
    from fedlora.errors import BudgetError
    from fedlora.privacy.ledger.rows import require_budget
    from fedlora.sections import most_delta

    require_budget(account, epsilon=epsilon, delta=delta)  # before a file is made
    if delta > most_delta(records):
        raise BudgetError(
            f"--delta is {delta:g}, but with {records} records at most 1/{10 * records} means "
            "anything: lower it."
        )
    _open(path).open_account(account, epsilon=epsilon, delta=delta)
    typer.echo(f"Account {account}: ε {epsilon:g} at δ {delta:g}, in {path}.")


@app.command()
def show(path: LedgerFile) -> None:
    """Print what each account has spent and reserved, by run."""
    from fedlora.privacy.accounting.renyi_filter import RenyiFilter

    opened = _open(path)
    balances = opened.balances()
    if not balances:
        typer.echo(f"No account is open in {path}.")
        return
    for name, balance in balances.items():
        costs = RenyiFilter(epsilon=math.inf, delta=balance.delta).epsilon_of
        _print_account(name, balance, opened.rows(name), costs=costs)
    typer.echo(_EXPLAINED)


@app.command()
def close(
    path: LedgerFile,
    run: Annotated[str, typer.Argument(help="Name of a run that will not go on.")],
    account: Account = DEFAULT_ACCOUNT,
) -> None:
    """End a run: what it reserved and never drew is free again. What it drew stays charged."""
    opened = _open(path)
    balance = opened.balances().get(account)
    freed = run in balance.reserved if balance else False
    opened.close(account, run)
    left = "What it had reserved is free again." if freed else "It had nothing left to draw."
    typer.echo(f"Run {run} of account {account} is closed. {left}")


@app.command()
def verify(path: LedgerFile) -> None:
    """Walk the chain of rows and compare its head with the mirror beside the file."""
    head = _open(path).verify()
    typer.echo(f"{head.count} rows, whole; head {head.hash}")


@app.command()
def export(path: LedgerFile) -> None:
    """Print all rows as JSON lines, with the hashes that chain them."""
    typer.echo(_open(path).export(), nl=False)


def _open(path: Path) -> "Ledger":
    from fedlora.privacy.accounting.renyi_filter import RenyiFilter
    from fedlora.privacy.ledger import Ledger

    return Ledger(path, new_filter=RenyiFilter)


def _print_account(
    name: str,
    balance: "Balance",
    rows: Sequence["ChargeRow"],
    *,
    costs: Callable[[Sequence["Charge"]], float],
) -> None:
    from rich.console import Console
    from rich.table import Table

    limit = "without limit" if balance.epsilon is None else f"of {balance.epsilon:g}"
    left = [charge for charges in balance.reserved.values() for charge in charges]
    promised = f", with what is reserved {costs([*balance.spent, *left]):.3g}" if left else ""
    typer.echo(
        f"Account {name}: ε {costs(balance.spent):.3g} spent {limit}{promised}, at δ "
        f"{balance.delta:g}.\n"
    )
    table = Table("run", box=None, header_style="bold", pad_edge=False)
    for column in ("rounds", "charges", "steps", "noise", "rate", "ε", "last (UTC)"):
        table.add_column(column, justify="right")
    for run in dict.fromkeys([*(row.run for row in rows), *balance.reserved]):
        table.add_row(run)
        lines: dict[str, list[ChargeRow]] = {}
        for row in rows:
            if row.run == run:
                lines.setdefault(row.purpose, []).append(row)
        for purpose, charged in lines.items():
            rounds = f"{len({row.number for row in charged})}", f"{len(charged)}"
            facts = _facts([row.charge for row in charged], costs=costs)
            table.add_row(f"  {purpose}", *rounds, *facts, charged[-1].time[:10])
        for charge in balance.reserved.get(run, ()):
            table.add_row("  reserved", "", "", *_facts([charge], costs=costs), "", style="dim")
    if table.row_count:
        needed = Console(width=_WIDEST).measure(table).maximum
        console = Console(highlight=False)
        console.width = max(console.width, needed)  # names are whole, to be copied
        console.print(table)
        typer.echo()


def _facts(
    charges: Sequence["Charge"], *, costs: Callable[[Sequence["Charge"]], float]
) -> Sequence[str]:
    """Return steps, noise, sampling rate and ε of a line."""
    noises = sorted({charge.noise_multiplier for charge in charges})
    rates = sorted({charge.sampling_rate for charge in charges})
    several = [
        " to ".join(f"{x:.3g}" for x in dict.fromkeys((v[0], v[-1]))) for v in (noises, rates)
    ]
    return f"{sum(charge.steps for charge in charges):,}", *several, f"{costs(charges):.3g}"
