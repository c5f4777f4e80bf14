"""The ``fedlora`` command: its commands, and how errors look to a user."""

import logging
import sys
from typing import Annotated

import typer

from fedlora import __version__
from fedlora.cli import adapters, client, data, privacy, recipe, registry, server
from fedlora.cli.chat import chat
from fedlora.cli.simulate import simulate
from fedlora.errors import FedloraError, plain

app = typer.Typer(
    name="fedlora",
    help="Federated, privacy-preserving LoRA fine-tuning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(simulate)
app.command()(chat)
app.add_typer(adapters.app, name="adapters")
app.add_typer(client.app, name="client")
app.add_typer(data.app, name="data")
app.add_typer(privacy.app, name="privacy")
app.add_typer(recipe.app, name="recipe")
app.add_typer(registry.app, name="registry")
app.add_typer(server.app, name="server")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedlora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Federated, privacy-preserving LoRA fine-tuning."""


def main() -> None:
    """Run the command line; an expected error is one message and exit code 2."""
    logging.basicConfig(format="%(levelname)s: %(message)s")  # or the first library chooses
    try:
        app()
    except FedloraError as error:
        typer.secho(f"error: {plain(str(error))}", err=True, fg=typer.colors.RED)
        sys.exit(2)
