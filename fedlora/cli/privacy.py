"""``fedlora privacy``: what privacy will cost, and what it has cost."""

from typing import Annotated

import typer

from fedlora.cli import ledger
from fedlora.cli.arguments import recipe_of
from fedlora.cli.audit import audit

app = typer.Typer(
    help="Plan the noise of a run, audit it, look into a privacy ledger.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command()(audit)
app.add_typer(ledger.app, name="ledger")


@app.command()
def plan(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...", show_default=False)
    ],
) -> None:
    """Print the noise that a recipe's budget asks for, and what it leaves to learn.

    No data is read: all follows from what the recipe declares. A run that could learn nothing is
    refused, below the table that says why.
    """
    recipe = recipe_of(arguments)  # a wrong one is told before anything heavy is imported

    from fedlora.cli.privacy_table import print_lines
    from fedlora.errors import BudgetError
    from fedlora.runtime.fixed_point import require_sums
    from fedlora.runtime.privacy_plan import absurdity, lines

    require_sums(recipe)
    planned = lines(recipe)
    print_lines(recipe, planned)
    if reason := absurdity(recipe, planned):
        raise BudgetError(reason)
