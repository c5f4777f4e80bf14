"""``fedlora privacy``: what privacy will cost, and what it has cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.audit import audit
from fedlora.privacy.ledger import DEFAULT_ACCOUNT

if TYPE_CHECKING:
    from fedlora.privacy.ledger import Ledger
    from fedlora.recipe import Recipe
    from fedlora.runtime.privacy_plan import Line

app = typer.Typer(
    help="Plan the noise of a run, audit it, look into a site's privacy ledger.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
ledger = typer.Typer(
    help="Look into a site's privacy ledger.", no_args_is_help=True, rich_markup_mode="markdown"
)
app.command()(audit)
app.add_typer(ledger, name="ledger")

LedgerFile = Annotated[
    Path, typer.Argument(metavar="LEDGER", help="A site's ledger.sqlite.", exists=True)
]


@app.command()
def plan(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...", show_default=False)
    ],
) -> None:
    """Print the noise that a recipe's budget asks for, site by site, and what it leaves to learn.

    No data is read: all follows from what the recipe declares.
    """
    from fedlora.recipe import read_recipe
    from fedlora.runtime.privacy_plan import lines

    recipe = read_recipe(Path(arguments[0]), overrides=arguments[1:])
    _print_plan(recipe, lines(recipe))


@ledger.command("open")
def open_account(
    path: Annotated[
        Path, typer.Argument(metavar="LEDGER", help="A site's ledger.sqlite, made if missing.")
    ],
    epsilon: Annotated[float, typer.Option(help="Most that all runs together may cost.")],
    delta: Annotated[float, typer.Option(help="At most 1 / (10 · records).")],
    account: Annotated[str, typer.Option(help="Name of the account.")] = DEFAULT_ACCOUNT,
) -> None:
    """Open a budget account, before a site's first run.

    Without it the first run opens one that only records. A budget is for good.
    """
    _open(path).open_account(account, epsilon=epsilon, delta=delta)
    typer.echo(f"Account {account}: ε {epsilon:g} at δ {delta:g}, in {path}.")


@ledger.command()
def show(path: LedgerFile) -> None:
    """Print what each account has spent, by run."""
    from fedlora.privacy.accounting.renyi_filter import RenyiFilter

    opened = _open(path)
    for name, balance in opened.balances().items():
        limit = "no limit" if balance.epsilon is None else f"at most {balance.epsilon:g}"
        spent = RenyiFilter(epsilon=math.inf, delta=balance.delta).epsilon_of(balance.spent)
        typer.echo(f"account {name}: ε {spent:.3g} of {limit} at δ {balance.delta:g}")
        runs: dict[str, list[int]] = {}
        for row in opened.rows(name):
            of_run = runs.setdefault(f"{row.run}, {row.purpose}", [0, 0])
            of_run[0] += 1
            of_run[1] += row.charge.steps
        for run, (charges, steps) in runs.items():
            typer.echo(f"  {run}: {charges} charges, {steps} steps")
        for run in balance.reserved:
            typer.echo(f"  {run}: has more reserved")


@ledger.command()
def close(
    path: LedgerFile,
    run: Annotated[str, typer.Argument(help="Name of a run that will not go on.")],
    account: Annotated[str, typer.Option(help="Name of the account.")] = DEFAULT_ACCOUNT,
) -> None:
    """End a run: what it reserved and never drew is free again. What it drew stays charged."""
    _open(path).close(account, run)
    typer.echo(f"Run {run} of account {account} is closed.")


@ledger.command()
def verify(path: LedgerFile) -> None:
    """Walk the chain of rows and compare its head with the mirror beside the file."""
    head = _open(path).verify()
    typer.echo(f"{head.count} rows, whole; head {head.hash}")


@ledger.command()
def export(path: LedgerFile) -> None:
    """Print all rows as JSON lines, with the hashes that chain them."""
    typer.echo(_open(path).export(), nl=False)


def _open(path: Path) -> "Ledger":
    from fedlora.privacy.accounting.renyi_filter import RenyiFilter
    from fedlora.privacy.ledger import Ledger

    return Ledger(path, new_filter=RenyiFilter)


def _print_plan(recipe: "Recipe", lines: Sequence["Line"]) -> None:
    from rich.console import Console
    from rich.table import Table

    federation, privacy = recipe.federation, recipe.privacy
    typer.echo(
        f"One training record more or less, Poisson sampling, δ {privacy.delta:g}, "
        f"{federation.rounds} rounds of {federation.local_steps} steps of {recipe.batch_size} "
        f"records on average, {federation.method}.\n"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("sites")
    for column in ("records", "rate", "ε", "noise", "signal/noise", "of the run", "in an account"):
        table.add_column(column, justify="right")
    before: Sequence[str] = ()
    for line in lines:
        facts = [", ".join(line.sites), f"{line.records:,}", f"{line.sampling_rate:.3g}"]
        table.add_row(
            *(facts if line.sites != before else ["", "", ""]),
            f"{line.epsilon:g}",
            f"{line.noise_multiplier:.3g}" if math.isfinite(line.noise_multiplier) else "too much",
            f"{line.step_signal:.2g}",
            f"{line.run_signal:.2g}",
            f"{line.account_epsilon:.3g}",
            style="green" if line.epsilon == privacy.epsilon else "",
        )
        before = line.sites
    table.add_row("", "", "", "∞", "0", "∞", "∞", "∞")
    Console(highlight=False).print(table)
    typer.echo(
        "\nnoise: standard deviation over the clip norm. signal/noise: norm of a step's sum over "
        "that of its noise, at best. in an account: what a site's ledger counts the run as, since "
        "later runs may be chosen in its light."
    )
