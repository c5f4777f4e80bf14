"""``fedlora adapters combine``: the weighted mean of what adapters change, as one adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.errors import AdapterError, StorageError
from fedlora.methods import OfflineMethod

if TYPE_CHECKING:
    from fedlora.adapter import AdapterState
    from fedlora.aggregation.offline import Ingredient, Mixture

_ROUNDING = 1e-6
"""Relative error that float32 alone makes."""


def combine(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER...", help="Folders in PEFT's format.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the result goes; a new folder.")],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="One for each adapter, relative to their sum; negative ones subtract. "
            "Default: equal.",
        ),
    ] = None,
    method: Annotated[
        OfflineMethod,
        typer.Option(
            help="product: best adapter of one rank; average: mean of A and of B; concat: factors "
            "stacked, exact."
        ),
    ] = "product",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Rank of the product. Default: the largest of the adapters."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the adapters' base model is called, where they disagree."
        ),
    ] = None,
) -> None:
    """Combine LoRA adapters of one base model into one, by the weighted mean of what they change.

    Each ADAPTER is a folder in PEFT's format, of any rank and alpha. The base model is not needed.
    """
    if out.exists():
        raise StorageError(f"{out}: it is already there. Choose another folder, or remove it.")
    each = _read_weights(weights, count=len(adapters))

    from fedlora.aggregation import offline
    from fedlora.peft_folder import read_peft_folder, write_peft_folder

    ingredients = [
        offline.Ingredient(
            name=str(folder), weight=weight, state=read_peft_folder(folder, base_model=base_model)
        )
        for folder, weight in zip(adapters, each, strict=True)
    ]
    mixture = offline.combine(ingredients, method=method, rank=rank)
    write_peft_folder(mixture.state, out)
    _print_table(ingredients, mixture, out=out)
    _print_error(mixture, method=method)


def _read_weights(text: str | None, *, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        raise AdapterError(
            f"--weights: numbers with commas between them were expected, but it is {text!r}."
        ) from None
    if len(weights) != count:
        raise AdapterError(
            f"--weights: one for each of the {count} adapters was expected, but there are "
            f"{len(weights)}."
        )
    return weights


def _print_table(ingredients: Sequence["Ingredient"], mixture: "Mixture", *, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedlora import products
    from fedlora.runtime.reports.format import size

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("adapter", overflow="fold")
    for column in ("rank", "alpha", "modules", "weight", "‖ΔW‖"):
        table.add_column(column, justify="right", no_wrap=True)

    def add(name: str, state: "AdapterState", weight: str, norm: float) -> None:
        modules = len(state.spec.tensors) // 2
        facts = str(state.spec.rank), f"{state.spec.alpha:g}", str(modules), weight, f"{norm:.4g}"
        table.add_row(Text(name), *facts)

    for one, weight, norm in zip(ingredients, mixture.weights, mixture.norms, strict=True):
        add(one.name, one.state, f"{weight:.3g}", norm)
    add(str(out), mixture.state, "", products.norm(mixture.state))
    Console(highlight=False).print(table)
    written = size(sum(file.stat().st_size for file in out.iterdir()))
    typer.echo(f"\nWritten to {out} ({written}).")


def _print_error(mixture: "Mixture", *, method: OfflineMethod) -> None:
    """Print how far the products of the result are from the weighted mean of the adapters'."""
    if mixture.error < _ROUNDING:
        typer.echo("It is the weighted mean of what the adapters change, exact up to rounding.")
        return
    typer.echo(
        f"It differs from the weighted mean of what the adapters change by "
        f"{100 * mixture.error:.3g} % of that mean's norm."
    )
    if method == "product":
        typer.echo(f"With --rank {mixture.exact_rank} it would be exact.")
    if method == "average":
        typer.echo("With --method product it would be as close as this rank allows.")
