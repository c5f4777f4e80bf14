"""What a message asks of which site: known before the site's data or base are opened."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from flwr.app import Context, Message
from flwr.common.constant import PARTITION_ID_KEY

from fedlora.adapter import AdapterSpec
from fedlora.recipe import Recipe
from fedlora.runtime import records
from fedlora.runtime.lock import spec_of
from fedlora.runtime.site.site import resident_base
from fedlora.wire.codec import Envelope

SITE_KEY = "site"
"""Key of a deployed node's configuration: the site's name. A simulated node has a number."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An instruction, read."""

    recipe: Recipe
    site: str
    deployed: bool
    """Whether this is a site of its own, rather than one of a simulation."""
    purpose: str
    """``train``, ``evaluate`` or ``query``."""
    envelope: Envelope
    """The whole global adapter, run and round that the exchange is about."""

    @classmethod
    def of(cls, message: Message, context: Context) -> Self:
        """Read an instruction.

        At a deployed site nothing is loaded for it, whatever base model it names.

        Raises:
            WireError: there is no task in it.
            RecipeError: its recipe is none; or it is not locked, and this is a deployed site.
            BaseModelError: the recipe is not locked, and its base is not here.
        """
        task, configuration = records.Task.of(message.content), context.node_config
        recipe, deployed = recipe_of(task.recipe), SITE_KEY in configuration
        if deployed:
            site = str(configuration[SITE_KEY])
        else:
            site = recipe.site_names[int(configuration[PARTITION_ID_KEY])]
        return cls(
            recipe=recipe,
            site=site,
            deployed=deployed,
            purpose=message.metadata.message_type.partition(".")[0],
            envelope=Envelope(
                spec=_spec(recipe, deployed=deployed), run=task.run, round=task.round
            ),
        )


@lru_cache(maxsize=16)
def recipe_of(text: str) -> Recipe:
    """Read the recipe of a task, which each of a run's messages brings again."""
    return Recipe.from_yaml(text)


@lru_cache(maxsize=16)
def _spec(recipe: Recipe, *, deployed: bool) -> AdapterSpec:
    return spec_of(recipe) if deployed or recipe.lock else resident_base(recipe).spec
