"""``fedlora adapters merge``: a release and its base as one model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.adapters_read import Registry


class Dtype(StrEnum):
    """Of the merged weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def merge(
    release: Annotated[
        str,
        typer.Argument(help="A release's folder, or NAME, NAME@ALIAS or NAME@RELEASE."),
    ],
    base: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="The base model in full precision: a folder or a name on the hub."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model goes; a new folder.")],
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights. Default: each as in the base.")
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="The publishing key, which signs the manifest; without it, it is a draft.",
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The public key that a folder is verified with, or a file with it. Default: the "
            "registry file's.",
        ),
    ] = None,
    registry: Registry = None,
) -> None:
    """Merge a release into its base: a model that needs no adapter.

    The release is verified first, and the base must be the one that its manifest says.
    """
    import torch

    from fedlora.release.merge import merge as merge_release
    from fedlora.release.reference import release_at
    from fedlora.runtime.reports.format import size
    from fedlora.signing import Signer
    from fedlora.training.base_model import resolve

    signer = Signer.load(sign) if sign else None
    found = release_at(release, registry=registry, key=key)
    named = found.manifest.base
    folder = resolve(base, named.revision if base == named.name else None)
    kind = getattr(torch, dtype.value) if dtype else None
    manifest = merge_release(found, folder, out, dtype=kind, signer=signer)
    written = size(sum(file.size for file in manifest.files.values()))
    state = "signed" if signer else "not signed"
    typer.echo(f"{manifest.name} is in {out} ({written}), {state}: {manifest.release}")
