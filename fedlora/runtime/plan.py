"""What a run will need, found out before anything large is loaded or anything is written."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedlora.data.partition import SiteExamples, site_examples
from fedlora.recipe import EMBEDDED, Recipe
from fedlora.sections import STANDARD_LIBRARY
from fedlora.training.base_model import BaseFacts, describe


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What one site trains and is measured on."""

    name: str
    types: tuple[str, ...]
    """Formats of its datasets, as named or detected."""
    train_rows: int
    held_out_rows: int
    digest: str
    """SHA-256 of its rows, in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe that can be run, and what it costs."""

    recipe: Recipe
    """With absolute paths, so that it means the same in any working folder."""
    base: BaseFacts
    sites: tuple[SitePlan, ...]

    @property
    def message_bytes(self) -> int:
        """Bytes of the adapter in one message: float32, without the header of a few kilobytes."""
        return 4 * self.base.spec.size


def plan(recipe: Recipe) -> Plan:
    """Check the recipe against its data and its base model's configuration.

    Raises:
        DataError: a dataset is missing, broken, or too small to split.
        BaseModelError: the base model is not there or has no such modules.
    """
    recipe, sites = _located(recipe), []
    for name in recipe.site_names:
        examples = site_examples(recipe, name)
        sites.append(
            SitePlan(
                name=name,
                types=tuple(sorted(set(examples.types))),
                train_rows=len(examples.train),
                held_out_rows=len(examples.held_out),
                digest=hashlib.sha256(_text(examples).encode()).hexdigest(),
            )
        )
    return Plan(recipe=recipe, base=describe(recipe), sites=tuple(sites))


def _text(examples: SiteExamples) -> str:
    parts = (examples.train, examples.held_out)
    return json.dumps([[[(t.role, t.content) for t in e.turns] for e in part] for part in parts])


def _located(recipe: Recipe) -> Recipe:
    """Return the recipe with its local paths made absolute."""
    datasets = [
        dataset.model_copy(update={"path": _absolute(dataset.path)}) for dataset in recipe.datasets
    ]
    update = {"datasets": tuple(datasets), "base_model": _absolute(recipe.base_model)}
    return recipe.model_copy(update=update)


def _absolute(path: str) -> str:
    if path in (STANDARD_LIBRARY, EMBEDDED) or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().resolve())
