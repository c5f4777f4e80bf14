"""``fedlora data``: data, looked at before anybody trains on it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.arguments import recipe_of
from fedlora.errors import RecipeError

if TYPE_CHECKING:
    from fedlora.recipe import Recipe
    from fedlora.runtime.data_check import DataReport

app = typer.Typer(help="Look at data before anybody trains on it.", no_args_is_help=True)


@app.callback()
def _noun() -> None:
    """Look at data before anybody trains on it."""


@app.command()
def check(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH|RECIPE [KEY=VALUE]...",
            help="A file, a folder or a Hub data set; or a recipe (.yaml).",
        ),
    ],
    base_model: Annotated[
        str | None, typer.Option(help="Whose tokenizer and chat template; default: embedded.")
    ] = None,
    sequence_len: Annotated[int | None, typer.Option(min=8, help="Longest row in tokens.")] = None,
    type_: Annotated[
        str | None, typer.Option("--type", help="Format of the rows; by default detected.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="What is to be learned.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a folder or a Hub data set.")] = None,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Data to evaluate on, which must share no row."),
    ] = None,
) -> None:
    """Say what training would make of data: format, rows, lengths, and what is learned of them.

    Exits with code 1 when training would go wrong. It needs the base model's tokenizer alone.
    Keys replace those of the recipe that is tried, such as `excess_length_strategy=drop`.

    It prints one row, for you alone: the output belongs where the data does.
    """
    from fedlora.cli.data_tables import print_faults, print_report, print_sample, waiting
    from fedlora.runtime.data_check import check_dataset, check_sites, shared, tokenizer_of
    from fedlora.sections import AT_SITE, Dataset

    keys = {"base_model": base_model, "sequence_len": sequence_len, "objective": objective}
    recipe = _recipe(arguments, keys, source={"type": type_, "split": split})
    tokenizer = tokenizer_of(recipe)
    reports: list[DataReport] = []
    for dataset in dict.fromkeys(recipe.datasets):
        if dataset.path != AT_SITE:
            with waiting(dataset.path):
                reports.append(check_dataset(dataset, recipe, tokenizer))
            print_report(reports[-1], recipe)
    faults = [fault for report in reports for fault in report.faults]
    if held_out:
        named = recipe.datasets[0].type
        other = check_dataset(Dataset(path=held_out, type=named), recipe, tokenizer)
        print_report(other, recipe)
        faults += other.faults
        if both := shared(reports, other):
            faults.append(f"{held_out}: {len(both)} of its rows are trained on: {_some(both)}")
    print_sample(reports, tokenizer)
    faults = faults or check_sites(recipe, tokenizer)
    print_faults(faults)
    if faults:
        raise typer.Exit(1)


def _recipe(
    arguments: list[str], keys: dict[str, str | int | None], *, source: dict[str, str | None]
) -> "Recipe":
    """Return the recipe that is named, or one for the path that is."""
    from fedlora.recipe import Recipe

    overrides = [f"{key}={value}" for key, value in keys.items() if value is not None]
    if _is_recipe(arguments):
        if any(source.values()):
            raise RecipeError(
                "--type and --split are of a path: set them in the recipe's datasets."
            )
        return recipe_of(arguments, overrides=overrides)
    paths = [argument for argument in arguments if "=" not in argument]
    if len(paths) != 1:
        raise RecipeError(
            f"One path or recipe is expected beside keys, but {len(paths)} are given."
        )
    from fedlora.document import write_yaml

    dataset = {
        "path": paths[0],
        "site": "here",
        **{key: value for key, value in source.items() if value},
    }
    given = [argument for argument in arguments if "=" in argument]
    text = write_yaml({"datasets": [dataset], "privacy": {"unit": "none"}})
    return Recipe.from_yaml(text, source="options", overrides=[*given, *overrides])


def _is_recipe(arguments: list[str]) -> bool:
    return any(Path(argument).suffix in {".yaml", ".yml"} for argument in arguments)


def _some(places: list[str]) -> str:
    more = f" and {len(places) - 3} more" if places[3:] else ""
    return "; ".join(places[:3]) + more
