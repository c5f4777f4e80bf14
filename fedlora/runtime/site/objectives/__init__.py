"""The objectives: what each makes of a row, from its text to its loss."""

from collections.abc import Callable, Mapping
from typing import Any

from fedlora.recipe import Recipe
from fedlora.runtime.site.objectives.classification import Classification
from fedlora.runtime.site.objectives.dpo import Dpo
from fedlora.runtime.site.objectives.objective import Objective
from fedlora.runtime.site.objectives.sft import Sft

_OBJECTIVES: Mapping[str, Callable[[Recipe], Objective[Any, Any, Any]]] = {
    "sft": Sft,
    "dpo": Dpo,
    "classification": Classification,
}


def objective_of(recipe: Recipe) -> Objective[Any, Any, Any]:
    """Return what the recipe's sites learn by."""
    return _OBJECTIVES[recipe.objective](recipe)


__all__ = ["Objective", "objective_of"]
