"""``fedlora privacy``: what privacy will cost, and what it has cost."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli import ledger

if TYPE_CHECKING:
    from fedlora.recipe import Recipe
    from fedlora.runtime.privacy_plan import Line

app = typer.Typer(
    help="Plan the noise of a run; look into a privacy ledger.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(ledger.app, name="ledger")


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
