"""What the README says of recipes is what the code does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from fedlora.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([\w.]+)` \| (?:`([^`]*)`)? ?\|", re.MULTILINE)


def defaults(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a section with its default, sections opened."""
    for name, field in model.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from defaults(type(default), prefix=f"{name}.")
        else:
            yield prefix + name, list(default) if isinstance(default, tuple) else default


def test_the_table_lists_every_key_with_its_default():
    """No key is missing, none is invented, and the defaults are those of the code."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| key | default | meaning |") : text.index("## What a run leaves")]
    told = {key: yaml.safe_load(value or "null") for key, value in ROW.findall(table)}
    assert told == dict(defaults(Recipe))


@pytest.mark.parametrize("path", sorted((ROOT / "simulations" / "recipes").glob("*.yaml")), ids=str)
def test_an_example_recipe_is_valid(path):
    """A recipe that we show can be read."""
    assert read_recipe(path).site_names
