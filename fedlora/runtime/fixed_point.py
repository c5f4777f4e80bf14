"""How the updates of a recipe become whole numbers: the same at the sites and at the aggregator."""

from fedlora.errors import RecipeError, SecureSumError
from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint
from fedlora.recipe import Recipe
from fedlora.runtime.charges import secure_noise
from fedlora.runtime.secure_terms import terms_of


def fixed_point_of(recipe: Recipe) -> FixedPoint:
    """Return how updates become whole numbers, with the noise that hides clients, if any.

    An update counts by its examples, up to ``federation.max_weight``, or as all others.

    Raises:
        BudgetError: no noise is enough.
        SecureSumError: sums do not fit into 32 bits.
    """
    federation, most = recipe.federation, recipe.examples_of_round[-1]
    examples = min(most, federation.max_weight or most)
    return FixedPoint(
        clients=recipe.cohort_size,
        clip_norm=recipe.secure_clip_norm,
        weights_up_to=1 if federation.weighting == "uniform" else examples,
        noise=secure_noise(recipe),
    )


def require_sums(recipe: Recipe) -> None:
    """Do nothing if there can be the sums that a recipe asks for, if it does.

    Raises:
        RecipeError: no graph promises what it says, or its sums do not fit into 32 bits.
        BudgetError: no noise is enough.
    """
    if not recipe.privacy.secure_aggregation:
        return
    try:
        terms_of(recipe)
        fixed_point_of(recipe)
    except SecureSumError as error:
        raise RecipeError(f"privacy.secure_aggregation: {error}") from None
