"""``fedlora recipe``: what is done to a recipe before it is played."""

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.arguments import recipe_of

app = typer.Typer(help="Prepare recipes.", no_args_is_help=True)


@app.command()
def lock(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...")],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE", help="Where to write it; by default it is printed."),
    ] = None,
) -> None:
    """Write down which base model a recipe means, for hosts that do not have it.

    Run it where the base model is. The aggregator plays a locked recipe without the base, and the
    gates of the sites compare it, its digest included, with their policy.
    """
    from fedlora import atomic
    from fedlora.runtime.lock import locked
    from fedlora.training.base_model import describe

    recipe = recipe_of(arguments)
    base = describe(recipe)
    recipe = locked(recipe, base.spec, base.digests)
    if into is None:
        typer.echo(recipe.to_yaml(), nl=False)
        return
    atomic.write_file(into, recipe.to_yaml())
    typer.echo(f"{into}\nrecipe digest  {recipe.digest}\nbase digest    {base.spec.base_digest}")


@app.command()
def digest(
    arguments: Annotated[list[str], typer.Argument(metavar="RECIPE [KEY=VALUE]...")],
) -> None:
    """Print a recipe's digest: what a site's policy names to allow this very recipe."""
    typer.echo(recipe_of(arguments).digest)
