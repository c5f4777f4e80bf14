"""``fedlora adapters list, show, pull, verify, watch``: what a registry has, checked."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedlora.errors import ReleaseError, plain

Registry = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="registry.yaml of the publisher, or a store's folder. Default: FEDLORA_REGISTRY.",
    ),
]
Reference = Annotated[
    str, typer.Argument(metavar="NAME[@ALIAS]", help="Or NAME@RELEASE; by default the latest.")
]


def list_(
    name: Annotated[str | None, typer.Argument(help="Show the releases of this name.")] = None,
    registry: Registry = None,
) -> None:
    """List what is published: the names; or a name's releases, newest first."""
    from fedlora.cli.adapters_tables import print_names, print_releases
    from fedlora.release.home import puller

    source = puller(registry)
    if name:
        print_releases(source.index(name))
        return
    names = source.source.names()
    if not names:
        typer.echo("Nothing is published there yet.")
        return
    found = []
    for each in names:
        try:
            found.append(source.index(each))
        except ReleaseError as error:  # the others can be had
            typer.echo(f"{plain(str(error))}\n", err=True)
    if found:
        print_names(found)
    if len(found) < len(names):
        raise typer.Exit(2)


def show(
    reference: Reference,
    registry: Registry = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest itself.")] = False,
) -> None:
    """Show a release: what it is, where it comes from, what is promised of it."""
    from fedlora.cli.adapters_tables import print_manifest
    from fedlora.release.home import puller

    source = puller(registry)
    manifest = source.manifest(reference)
    if as_json:
        typer.echo(json.dumps(manifest.model_dump(mode="json", exclude_none=True), indent=2))
    else:
        print_manifest(manifest)


def pull(
    reference: Reference,
    registry: Registry = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder; by default one in ~/.fedlora/releases."),
    ] = None,
) -> None:
    """Fetch a release, checked to the byte, into a folder that PEFT and serving engines load.

    What breaks off goes on where it stopped when it is called again.
    """
    from fedlora.release import home

    release = home.pull(reference, registry=registry, into=into)
    typer.echo(f"{release.manifest.name} {release.id[:12]} is in {release.folder}")
    typer.echo("Each byte is what the publisher has signed.")


def verify(
    folder: Annotated[Path, typer.Argument(help="A release's folder.")],
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The publisher's public key, or a file with it. Default: the registry file's.",
        ),
    ] = None,
    registry: Registry = None,
) -> None:
    """Check a release offline: the signature, and each byte against the manifest."""
    from fedlora.release import folder as releases
    from fedlora.release.home import publisher_key

    release = releases.verify(folder, key=publisher_key(key, registry=registry))
    typer.echo(
        f"{release.manifest.name} {release.id}: the publisher has signed this manifest, and its "
        f"{len(release.manifest.files)} files are what it says. Whether it was revoked since, only "
        "the registry knows: fedlora adapters show."
    )


def watch(
    reference: Reference,
    into: Annotated[
        Path, typer.Option(metavar="DIR", help="Where a serving engine looks for adapters.")
    ],
    registry: Registry = None,
) -> None:
    """Keep a folder current: fetch what an alias points to as it moves, remove what is revoked."""
    from fedlora.release import watch as watching
    from fedlora.release.home import puller

    for change in watching.watch(puller(registry), reference, into=into):
        version = f"index {change.index.version}"
        folder = f"{change.folder} is current" if change.folder else "nothing is current"
        reason = f" ({change.reason})" if change.reason else ""
        typer.echo(f"{change.index.issued}  {version}: {folder}{reason}")
