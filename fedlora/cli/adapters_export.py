"""``fedlora adapters export``: a release where others look for models."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.adapters_read import Registry
from fedlora.errors import ReleaseError, StorageError

if TYPE_CHECKING:
    from fedlora.release.folder import Release


class Place(StrEnum):
    """Where releases can be exported to."""

    hub = "hub"
    oci = "oci"
    ollama = "ollama"


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A release's, as adapters pull makes it.")
    ],
    destination: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION",
            help="hub: OWNER/NAME. oci: HOST/NAME:TAG. ollama: a new folder.",
        ),
    ],
    to: Annotated[Place, typer.Option(help="What is there.")],
    public: Annotated[
        bool, typer.Option("--public", help="hub: let the world read it. Default: private.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ollama: what it calls the base, such as llama3.1:8b."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The publisher's public key, or a file with it. Default: the registry file's.",
        ),
    ] = None,
    registry: Registry = None,
) -> None:
    """Bring a release, verified first, to where others look for models.

    Manifest and signature go with it: whoever has the publisher's key can verify it there.
    """
    _require_used(to, public=public, base=base)
    from fedlora.release import export as exports
    from fedlora.release.folder import verify
    from fedlora.release.home import publisher_key

    release = verify(folder, key=publisher_key(key, registry=registry))
    match to:
        case Place.hub:
            typer.echo(exports.to_hub(release, destination, public=public))
        case Place.oci:
            typer.echo(exports.to_oci(release, destination))
        case Place.ollama:
            _to_ollama(release, Path(destination), base)


def _to_ollama(release: "Release", folder: Path, base: str | None) -> None:
    from fedlora.release import export as exports

    if folder.exists():
        raise StorageError(f"{folder}: it is already there. Choose another folder, or remove it.")
    modelfile = exports.to_ollama(release, folder, base=base)
    typer.echo(f"ollama create {release.manifest.name} -f {modelfile}")


def _require_used(to: Place, *, public: bool, base: str | None) -> None:
    if public and to is not Place.hub:
        raise ReleaseError("--public is for --to hub.")
    if base and to is not Place.ollama:
        raise ReleaseError("--base is for --to ollama.")
