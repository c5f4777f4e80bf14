"""``fedlora privacy audit``: whether a recipe's privacy can be shown to be broken."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.arguments import recipe_of

if TYPE_CHECKING:
    from fedlora.privacy.audit.membership import Membership
    from fedlora.recipe import Recipe
    from fedlora.runtime.audit import Audit


def audit(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...", show_default=False)
    ],
    site: Annotated[
        str, typer.Option(help="Whose records the canaries hide among: the first site's.")
    ] = "",
    noise_off: Annotated[
        bool,
        typer.Option(
            "--noise-off", help="Demonstrate: the site adds no noise, and the audit must see it."
        ),
    ] = False,
    runs: Annotated[
        Path, typer.Option(help="Where the audit's folder is made: ./runs.", show_default=False)
    ] = Path("runs"),
) -> None:
    """Play a private recipe with canaries and attack what it publishes: a simulation.

    Prints which ε can be shown beside the one that is promised, and how well members are told from
    others, with privacy and without. Ends with exit code 1 if the promise is shown to be broken.
    """
    recipe = recipe_of(arguments)

    from fedlora.runtime.audit import require_auditable
    from fedlora.runtime.plan import plan
    from fedlora.runtime.reports.audit import write_audit
    from fedlora.runtime.run_folder import stamped_folder

    site = site or recipe.site_names[0]
    require_auditable(recipe, site)
    recipe = plan(recipe).recipe
    folder = stamped_folder(runs, f"{recipe.name}-audit")
    found = _canaries(recipe, site, noise_off=noise_off)
    if not noise_off:
        found = replace(found, membership=_membership(recipe, folder))
    page = write_audit(found, folder)
    _print(found)
    typer.echo(f"\nreport  {page}")
    if found.caught:
        raise typer.Exit(1)


def _canaries(recipe: "Recipe", site: str, *, noise_off: bool) -> "Audit":
    from fedlora.runtime.audit import Point, play_canaries
    from fedlora.runtime.reports.audit import DEMONSTRATION

    def tell(point: Point) -> None:
        typer.echo(f"round {point.round:<4} {point.shown:>8.2f} {point.accounted:>8.2f}")

    if noise_off:
        typer.secho(DEMONSTRATION, fg=typer.colors.YELLOW)
    typer.echo(f"Canaries at {site}: ε shown, and by the accountant")
    return play_canaries(recipe, site, noise_off=noise_off, observe=tell)


def _membership(recipe: "Recipe", folder: Path) -> "Mapping[str, Membership]":
    from fedlora.cli.view import RunView
    from fedlora.runtime.audit import infer_membership

    typer.echo("\nThe same recipe, with privacy and without, to attack what it publishes:")
    with RunView() as view:
        return infer_membership(recipe, folder, observe=view)


def _print(found: "Audit") -> None:
    from rich.console import Console
    from rich.table import Table

    from fedlora.runtime.reports.audit import DEMONSTRATION, verdict

    console = Console(highlight=False)
    guesses = ", ".join(f"{g.right:,} of {g.made:,} right" for g in found.end.tries)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("canaries", f"{found.canaries:,} at {found.site}; guesses: {guesses}")
    facts.add_row("ε at least", f"{found.end.shown:.2f} (of {found.most:.2f} that could be shown)")
    facts.add_row("ε at most", f"{found.end.accounted:.2f}, by the accountant")
    for name, of in found.membership.items():
        for heading, measure, i in (
            (f"{name} privacy", "AUC", of.auc),
            ("", "TPR at 1 % FPR", of.tpr),
        ):
            facts.add_row(heading, f"{measure} {i.value:.3f} ({i.low:.3f} to {i.high:.3f})")
    console.print()
    console.print(facts)
    if found.noise_off:
        console.print(f"\n{DEMONSTRATION}", style="yellow")
    typer.secho(f"\n{verdict(found)}", err=found.caught, fg="red" if found.caught else None)
