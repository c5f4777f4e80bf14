"""``fedlora registry``: a store of releases, its service, and who may call."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    help="Keep releases, serve them over gRPC, and say who may call.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
token = typer.Typer(
    help="Who may call: a file of names, scopes and hashed tokens.", no_args_is_help=True
)
app.add_typer(token, name="token")

Tokens = Annotated[
    Path, typer.Option(metavar="FILE", help="The list of callers; it is made when it is new.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What the log calls the caller.")]


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


@app.command()
def serve(
    store: Annotated[
        Path, typer.Argument(metavar="DIR", help="The store, with its registry.yaml.")
    ],
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen.")
    ] = "127.0.0.1:9445",
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The registry's certificate, in PEM.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key, in PEM.")
    ] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Callers must have a certificate of this authority."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may call: fedlora registry token add.")
    ] = None,
) -> None:
    """Serve a store until Ctrl-C or SIGTERM. Beyond loopback, that takes TLS and a list of callers.

    The registry needs no private key but its certificate's: publishers sign what they publish.
    """
    import asyncio

    from fedlora.release.registry.address import Address
    from fedlora.release.registry.callers import CallersFile
    from fedlora.release.registry.server import Server, Tls
    from fedlora.release.registry.server import serve as serve_until_told
    from fedlora.release.registry_file import FILE, RegistryFile
    from fedlora.release.store import Store
    from fedlora.runtime.processes import log

    if (certificate is None) != (key is None) or (client_ca and certificate is None):
        raise typer.BadParameter("--certificate and --key belong together, --client-ca to both.")
    log.start("registry")
    path = store.resolve()
    server = Server(
        Store(path, key=RegistryFile.read(path / FILE).key),
        address=Address.of(address),
        tls=Tls(certificate=certificate, key=key, client_ca=client_ca)
        if certificate and key
        else None,
        callers=CallersFile(tokens) if tokens else None,
        tell=log.say,
    )
    asyncio.run(serve_until_told(server))


@token.command("add")
def add(
    name: Name,
    scope: Annotated[
        Literal["read", "publish"], typer.Option(help="What it may do; publish includes read.")
    ],
    tokens: Tokens,
    certificate: Annotated[
        bool,
        typer.Option(
            "--certificate",
            help="No token: NAME is the name in the caller's certificate (serve --client-ca).",
        ),
    ] = False,
) -> None:
    """Add a caller and print its token, once; the file holds its SHA-256. It is good at once."""
    from fedlora.release.registry.callers import Callers, new_token

    secret = None if certificate else new_token()
    Callers.change(tokens, lambda callers: callers.adding(name, scope=scope, token=secret))
    typer.echo(f"{name} may {scope}, by its certificate." if secret is None else secret)


@token.command("list")
def list_callers(tokens: Tokens) -> None:
    """Print who may call."""
    from rich.console import Console
    from rich.table import Table

    from fedlora.release.registry.callers import Callers

    table = Table("caller", "scope", "shows", "since (UTC)", box=None, pad_edge=False)
    for caller in Callers.read(tokens).callers:
        shows = "a certificate" if caller.token is None else "a token"
        table.add_row(caller.name, caller.scope, shows, caller.since[:16].replace("T", " "))
    Console(highlight=False, markup=False).print(table)


@token.command("remove")
def remove(name: Name, tokens: Tokens) -> None:
    """Remove a caller; its next call is refused."""
    from fedlora.release.registry.callers import Callers

    Callers.read(tokens)  # or there is none to remove anybody from
    Callers.change(tokens, lambda callers: callers.removing(name))
    typer.echo(f"{name} may not call any more.")
