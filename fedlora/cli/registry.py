"""``fedlora registry``: a store of releases, and the service that hands them out."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Keep releases and hand them out.", no_args_is_help=True)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A new store's folder.")],
    key: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The publishing key; it is made unless there is one."),
    ],
) -> None:
    """Make a store of releases, and the key that all of them are signed with."""
    from fedlora.release.registry_file import FILE
    from fedlora.release.store import new_store

    public = new_store(path, key=key)
    typer.echo(f"Store in {path}, publisher {public.fingerprint}.")
    typer.echo(f"Readers need {path / FILE}; nobody but the publisher {key}.")
