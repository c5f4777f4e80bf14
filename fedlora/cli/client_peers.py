"""``fedlora client peers``: the sites that a site knows by their keys, and who it is to them."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.arguments import SiteDir, opened_site
from fedlora.errors import EnrolmentError, PolicyError

app = typer.Typer(
    help="Pin the keys of other sites, as their operators tell them by telephone.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The site's name, as in recipes.")]
_Key = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="Fingerprint (SHA256:…) of the key of its gate, the key in base64, or its "
        "gate.key.pub.",
    ),
]


@app.command()
def add(name: _Name, key: _Key, directory: SiteDir = Path()) -> None:
    """Pin a site to the key of its gate. One that is pinned to another key must be removed first.

    With a file or a key, compare its fingerprint, which is printed, by telephone.
    """
    from fedlora.runtime.client.peers import read_peers, write_peers

    folder, fingerprint = opened_site(directory), _fingerprint(key)
    write_peers(folder, read_peers(folder).adding(name, fingerprint))
    typer.echo(f"{name} is pinned to {fingerprint}.")


@app.command(name="list")
def list_(directory: SiteDir = Path()) -> None:
    """Show this site's own fingerprint, to be read out to the others, and those that are pinned."""
    from fedlora.runtime.client.peers import own, read_peers

    folder = opened_site(directory)
    site, _ = own(folder)
    pinned = read_peers(folder).fingerprints
    width = max(map(len, pinned))
    for name, fingerprint in pinned.items():  # no table: one that is narrow would cut them
        note = "  this site: read it out to the others" if name == site else ""
        typer.echo(f"{name:<{width}}  {fingerprint}{note}")
    if len(pinned) == 1:
        typer.echo("\nNo other site is pinned: fedlora client peers add NAME KEY.")


@app.command()
def verify(name: _Name, key: _Key, directory: SiteDir = Path()) -> None:
    """Compare a fingerprint with the one that is pinned. Exits with 1 if they are different."""
    from fedlora.runtime.client.peers import read_peers

    peers, told = read_peers(opened_site(directory)), _fingerprint(key)
    if not peers.matches(name, told):
        typer.secho(f"Different: {name} is not pinned to this key.", fg=typer.colors.RED)
        typer.echo(f"  pinned  {peers.fingerprints[name]}\n  given   {told}")
        raise typer.Exit(1)
    typer.secho(f"Equal: {name} is pinned to {told}.", fg=typer.colors.GREEN)


@app.command()
def remove(name: _Name, directory: SiteDir = Path()) -> None:
    """Forget a site's key: no secure sum with it is joined any more."""
    from fedlora.runtime.client.peers import own, read_peers, write_peers

    folder = opened_site(directory)
    if name == own(folder)[0]:
        raise PolicyError(f"{name} is this site itself, which no peer's file has to name.")
    write_peers(folder, read_peers(folder).removing(name))
    typer.echo(f"{name} is no longer pinned.")


def _fingerprint(key: str) -> str:
    """Return the fingerprint that a word of the command line stands for.

    Raises:
        PolicyError: it is neither a fingerprint, nor a key, nor a file of one.
    """
    from fedlora.gate.peers import require_fingerprint
    from fedlora.signing import PublicKey

    if key.startswith("SHA256:"):
        try:
            return require_fingerprint(key)
        except ValueError as error:
            raise PolicyError(f"{error}.") from None
    with suppress(EnrolmentError):
        return PublicKey.of(key).fingerprint
    try:
        return PublicKey.read(Path(key)).fingerprint
    except EnrolmentError as error:
        raise PolicyError(
            f"A fingerprint (SHA256:…), a key in base64 or a gate.key.pub was expected: {error}"
        ) from None
