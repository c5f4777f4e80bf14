"""``fedlora adapters diff``: how far apart two adapters are, and what their manifests say of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.adapters_read import Registry
from fedlora.errors import plain

if TYPE_CHECKING:
    from rich.table import Table

    from fedlora.release.diff import Difference, Distance

_ROUNDING = 1e-6
"""Relative distance that float32's rounding alone makes."""

Adapter = Annotated[
    str, typer.Argument(help="A folder in PEFT's format, or NAME, NAME@ALIAS or NAME@RELEASE.")
]


def diff(
    a: Adapter,
    b: Adapter,
    modules: Annotated[
        int, typer.Option(min=0, help="How many modules to show, the furthest apart first.")
    ] = 10,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the adapters' base model is called, where they disagree."
        ),
    ] = None,
    registry: Registry = None,
) -> None:
    """Compare two adapters of one base: what they change, and what their manifests say.

    The distance is of the products, whatever the ranks and the factors. The base is not needed.
    """
    from rich.console import Console

    from fedlora.release import diff as differing
    from fedlora.release.reference import folder_at

    folders = [folder_at(reference, registry=registry) for reference in (a, b)]
    found = differing.diff(*folders, base_model=base_model)
    console = Console(highlight=False)
    console.print(_distances(found, shown=modules))
    console.print(_sentence(found.whole), markup=False)
    if found.fields:
        console.print()
        console.print(_fields(found.fields))


def _distances(found: "Difference", *, shown: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("module", overflow="fold")
    for column in ("‖ΔW_A‖", "‖ΔW_B‖", "apart", "relative", "cosine"):
        table.add_column(column, justify="right", no_wrap=True)

    def add(name: str, each: "Distance", style: str = "") -> None:
        cosine = "-" if each.cosine is None else f"{each.cosine:.4f}"
        numbers = (f"{value:.4g}" for value in (each.a, each.b, each.apart))
        table.add_row(Text(name), *numbers, f"{100 * each.relative:.3g} %", cosine, style=style)

    add("all", found.whole, "bold")
    for name, each in list(found.modules.items())[:shown]:
        add(name, each)
    return table


def _sentence(whole: "Distance") -> str:
    if whole.relative < _ROUNDING:
        return "\nThey change the same, up to rounding."
    return f"\n‖ΔW_A - ΔW_B‖ is {100 * whole.relative:.3g} % of ‖ΔW_A‖."


def _fields(fields: Mapping[str, tuple[object, object]]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("manifest", "A", "B"):
        table.add_column(column, overflow="fold")
    for key, values in fields.items():
        table.add_row(key, *(Text("-" if value is None else plain(str(value))) for value in values))
    return table
