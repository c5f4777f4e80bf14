"""What commands are given: a folder; a recipe, and keys that replace its own, in any order."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.errors import EnrolmentError, RecipeError

if TYPE_CHECKING:
    from fedlora.recipe import Recipe
    from fedlora.runtime.client.folder import SiteFolder

SiteDir = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The site's folder; by default this one.")
]
ServerDir = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The aggregator's folder; by default this one.")
]


def opened_site(path: Path) -> "SiteFolder":
    """Return a site's folder, once it is known to be one.

    Raises:
        EnrolmentError: it is none.
    """
    from fedlora.runtime.client.folder import SiteFolder

    folder = SiteFolder(path)
    if not (folder.join.exists() or folder.configuration.exists()):
        raise EnrolmentError(
            f"{path.resolve()}: this is not a site's folder. Name it with --dir, or make it: "
            "fedlora client enroll BUNDLE."
        )
    return folder


def recipe_of(
    arguments: Sequence[str], *, default: Path | None = None, overrides: Sequence[str] = ()
) -> "Recipe":
    """Return the recipe that ``[RECIPE] [KEY=VALUE]...`` names.

    Args:
        arguments: as given; what has ``=`` in it is an override.
        default: the recipe if none is given.
        overrides: further ones, which win.

    Raises:
        RecipeError: there is no recipe, or more than one; or it is not one.
    """
    from fedlora.recipe import read_recipe

    files = [Path(argument) for argument in arguments if "=" not in argument]
    given = [argument for argument in arguments if "=" in argument]
    files = files or ([default] if default else [])
    if len(files) != 1:
        given_files = ", ".join(map(str, files)) or "none"
        raise RecipeError(
            f"One recipe, a YAML file, is expected beside keys; given: {given_files}."
        )
    return read_recipe(files[0], overrides=[*given, *overrides])
