"""``fedlora adapters publish, promote, rollback, revoke, renew``: what needs the publishing key."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.adapters_read import Registry
from fedlora.errors import ReleaseError

if TYPE_CHECKING:
    from fedlora.release.publisher import Publisher

Key = Annotated[
    Path, typer.Option(metavar="FILE", help="The publishing key, a private one in PEM.")
]
Reason = Annotated[str, typer.Option(help="Why; it is signed and shown to whoever asks.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="What it is published as.")]


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    key: Key,
    registry: Registry = None,
) -> None:
    """Publish the adapter of a run's last complete round: signed, with ``latest`` pointing to it.

    A run publishes by itself where it is given a store; this is for one that was not.
    """
    from fedlora.runtime.publication import publish_run
    from fedlora.runtime.run_folder import RunFolder

    publisher = _publisher(registry, key)
    manifest = publish_run(RunFolder.open(run), publisher)
    name, release = manifest.name, manifest.release
    typer.echo(f"Published as {name}@{release[:12]}.")
    for alias, to in sorted(publisher.index(name).aliases.items()):
        if to.release == release:
            typer.echo(f"{name}@{alias} points to it.")


def promote(
    reference: Annotated[
        str, typer.Argument(metavar="NAME@RELEASE", help="Or NAME@ALIAS, such as demo@candidate.")
    ],
    key: Key,
    to: Annotated[str, typer.Option(metavar="ALIAS", help="What is to point to it.")],
    reason: Reason,
    registry: Registry = None,
) -> None:
    """Let an alias point to a release.

    If somebody else moves the alias meanwhile, that is an error and theirs stays.
    """
    from fedlora.release.source import parse

    name, version = parse(reference)
    publisher = _publisher(registry, key)
    index = publisher.index(name)
    release, before = index.find(version), index.pointed(to)
    if before == release:
        raise ReleaseError(f"{name}@{to} points to {release[:12]} already.")
    publisher.move(name, to, release, expected=before, reason=reason)
    was = f", before: {before[:12]}" if before else ""
    typer.echo(f"{name}@{to} points to {release[:12]} now{was}.")


def rollback(
    name: Name,
    key: Key,
    alias: Annotated[str, typer.Option(metavar="ALIAS", help="What is to point back.")],
    reason: Reason,
    registry: Registry = None,
) -> None:
    """Let an alias point to the release that it pointed to before, revoked ones passed over."""
    index = _publisher(registry, key).roll_back(name, alias, reason=reason)
    typer.echo(f"{name}@{alias} points to {index.target(alias)[:12]} again.")


def revoke(
    reference: Annotated[str, typer.Argument(metavar="NAME@RELEASE")],
    key: Key,
    reason: Reason,
    registry: Registry = None,
) -> None:
    """Say that a release is not to be used any more; who asks for it gets the reason."""
    from fedlora.release.source import parse

    name, version = parse(reference)
    publisher = _publisher(registry, key)
    release = publisher.index(name).find(version)
    index = publisher.revoke(name, release, reason=reason)
    typer.echo(f"{name} {release[:12]} is revoked: nobody gets it any more.")
    for alias, to in sorted(index.aliases.items()):
        if to.release == release:
            typer.echo(
                f"{name}@{alias} still points to it, which is an error for its readers now: "
                f"fedlora adapters rollback {name} --alias {alias}, or promote another."
            )


def renew(name: Name, key: Key, registry: Registry = None) -> None:
    """Sign a name's index anew, before it expires; the releases stay as they are."""
    index = _publisher(registry, key).renew(name)
    typer.echo(f"The index of {name} is good until {index.expires}.")


def collect(
    name: Name,
    key: Key,
    store: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The store. Default: FEDLORA_REGISTRY.")
    ] = None,
) -> None:
    """Remove from a store what neither an alias nor a release that stays descends from."""
    from datetime import UTC, datetime

    from fedlora.release import garbage
    from fedlora.release.store import Store

    publisher = _publisher(store, key)
    if not isinstance(publisher.target, Store):
        raise ReleaseError("Files are removed where they are: name the store's folder.")
    removed = garbage.collect(publisher.target, publisher, name, now=datetime.now(UTC))
    for release in removed:
        typer.echo(f"Removed {release[:12]}.")
    if not removed:
        typer.echo(f"Every release of {name} is needed.")


def _publisher(registry: Path | None, key: Path) -> "Publisher":
    from fedlora.release.home import publisher
    from fedlora.signing import Signer

    return publisher(registry, Signer.load(key))
