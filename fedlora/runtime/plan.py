"""What a run will need, found out before anything large is loaded or anything is written."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedlora.data.partition import SiteExamples, site_examples
from fedlora.data.public_text import public_examples
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.tracked import require_trackable
from fedlora.runtime.beginning import beginning_of
from fedlora.runtime.charges import held_out_records
from fedlora.runtime.fixed_point import require_sums
from fedlora.runtime.secure_traffic import talk_of
from fedlora.sections import EMBEDDED, STANDARD_LIBRARY
from fedlora.training.base_model import BaseFacts, describe, require_optimizer
from fedlora.wire.encodings import encoded_size


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What one site trains and is measured on."""

    name: str
    types: tuple[str, ...]
    """Formats of its datasets, as named or detected."""
    train_rows: int
    """Under privacy as declared, like the held-out ones."""
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
    def bytes_down(self) -> int:
        """Bytes of the global adapter in one message, without the header of a few kilobytes.

        And of what a secure sum's stages say to a site.
        """
        return encoded_size(self.base.spec, "fp32") + talk_of(self.recipe).down

    @property
    def bytes_up(self) -> int:
        """Bytes of the largest update of a round, likewise; compression would make it smaller.

        In a secure sum they are 4 for each value, and what its stages say.
        """
        spec, recipe = self.base.spec, self.recipe
        rank = max(map(recipe.rank_of, recipe.site_names))
        parts = (spec.part(sent, rank=rank) for sent in map(recipe.federation.facts.sent, (1, 2)))
        update = max(encoded_size(part, recipe.wire.codec) for part in parts)
        return update + talk_of(recipe).up


def plan(recipe: Recipe) -> Plan:
    """Check the recipe against its data and its base model's configuration.

    Raises:
        RunError, RecipeError: as ``require_trackable``.
        RecipeError: there can be no such secure sums.
        DataError: a dataset or the public text is missing or broken, or a dataset too small to
            split.
        BaseModelError: the base model is not there, has no such modules, or has no room; or the
            optimiser is not to be had on its device.
        AdapterError: ``init_from`` holds no adapter that fits.
        ReleaseError: it is a release's folder, and a byte is not what was published.
    """
    require_trackable(recipe)
    require_sums(recipe)
    recipe, sites = _located(recipe), []
    if text := recipe.publish.forgetting:
        public_examples(text)
    for name in recipe.site_names:
        examples = site_examples(recipe, name)
        sites.append(
            SitePlan(
                name=name,
                types=tuple(sorted(set(examples.types))),
                train_rows=recipe.records_of(name) or len(examples.train),
                held_out_rows=held_out_records(recipe, name) or len(examples.held_out),
                digest=hashlib.sha256(_text(examples).encode()).hexdigest(),
            )
        )
    base = describe(recipe)
    base.require_room(recipe)
    if recipe.init_from and recipe.lock is None:  # a run that has begun has its own copy
        beginning_of(recipe, base.spec)
    require_optimizer(recipe.optimizer, base.device)
    return Plan(recipe=recipe, base=base, sites=tuple(sites))


def _text(examples: SiteExamples) -> str:
    parts = (examples.train, examples.held_out)
    return json.dumps([[example.content for example in part] for part in parts])


def _located(recipe: Recipe) -> Recipe:
    """Return the recipe with its local paths made absolute."""
    datasets = [
        dataset.model_copy(update={"path": _absolute(dataset.path)}) for dataset in recipe.datasets
    ]
    publish = recipe.publish
    if text := publish.forgetting:
        text = text.model_copy(update={"path": _absolute(text.path)})
        publish = publish.model_copy(update={"forgetting": text})
    update = {"datasets": tuple(datasets), "base_model": _absolute(recipe.base_model)}
    if recipe.init_from:
        update["init_from"] = _absolute(recipe.init_from)
    return recipe.model_copy(update={**update, "publish": publish})


def _absolute(path: str) -> str:
    if path in (STANDARD_LIBRARY, EMBEDDED) or not Path(path).expanduser().exists():
        return path
    return str(Path(path).expanduser().resolve())
