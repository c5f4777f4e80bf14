"""What a run will need, found out before anything large is loaded or anything is written."""

from dataclasses import dataclass

from fedlora.data.partition import site_examples
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseFacts, describe


@dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What one site trains and is measured on."""

    name: str
    types: tuple[str, ...]
    """Formats of its datasets, as named or detected."""
    train_rows: int
    held_out_rows: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe that can be run, and what it costs."""

    recipe: Recipe
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
    sites = []
    for name in recipe.site_names:
        examples = site_examples(recipe, name)
        sites.append(
            SitePlan(
                name=name,
                types=tuple(sorted(set(examples.types))),
                train_rows=len(examples.train),
                held_out_rows=len(examples.held_out),
            )
        )
    return Plan(recipe=recipe, base=describe(recipe), sites=tuple(sites))
