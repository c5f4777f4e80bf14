"""What a recipe says of its secure sums: the same at the sites and at the aggregator."""

import math

from fedlora.errors import RecipeError, SecureSumError
from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint
from fedlora.privacy.secure_aggregation.graph import derived
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.recipe import Recipe
from fedlora.sections.secure_sum import LARGEST_COMPLETE

STAGES = ("share", "mask", "sign", "reveal")
"""What follows a cohort's training, each a Flower message ``train.STAGE``."""

REVEALED = "The site has revealed its shares of this round's sum: there is no second one."
"""What a site says that is asked to take part in another sum of a round."""


def terms_of(recipe: Recipe) -> Terms:
    """Return what an attempt goes by.

    Up to 100 clients each shares secrets with all others. Above, each does with so many that what
    the threshold promises holds but with a probability of 2⁻⁴⁰, if no more than the recipe's
    colluders and dropouts are any; these are counted before the first share and after it alike.

    Raises:
        SecureSumError: no graph promises it.
    """
    members, colluders = recipe.cohort_size, recipe.colluders
    if members <= LARGEST_COMPLETE:
        return Terms(
            members=members,
            threshold=recipe.threshold,
            fewest=recipe.threshold,
            colluders=colluders,
            signed=recipe.privacy.threat_model == "malicious-aggregator",
        )
    dropped = math.floor(recipe.dropout_rate * members + 1e-9)  # 0.29 of 100 is 29
    fewest = members - dropped
    degree, threshold = derived(fewest, corrupt=colluders, dropped=dropped)
    return Terms(
        members=members,
        threshold=threshold,
        fewest=fewest,
        colluders=min(colluders, threshold - 1),
        signed=False,
        degree=degree,
        most_lost=dropped,
    )


def fewest_summed(recipe: Recipe) -> int:
    """Return the fewest clients whose sum is ever opened.

    Of a sparse graph's members so many may be lost before the roster, and as many after it.

    Raises:
        SecureSumError: as ``terms_of``.
    """
    terms = terms_of(recipe)
    return terms.threshold if terms.most_lost is None else terms.fewest - terms.most_lost


def require_sums(recipe: Recipe) -> None:
    """Do nothing if there can be the sums that a recipe asks for, if it does.

    Raises:
        RecipeError: no graph promises what it says, or its sums do not fit into 32 bits.
    """
    if not recipe.privacy.secure_aggregation:
        return
    try:
        terms_of(recipe)
        fixed_point_of(recipe)
    except SecureSumError as error:
        raise RecipeError(f"privacy.secure_aggregation: {error}") from None


def fixed_point_of(recipe: Recipe) -> FixedPoint:
    """Return how updates become whole numbers.

    An update counts by its examples, up to ``federation.max_weight``, or as all others.
    """
    federation, most = recipe.federation, recipe.examples_of_round[-1]
    examples = min(most, federation.max_weight or most)
    return FixedPoint(
        clients=recipe.cohort_size,
        clip_norm=recipe.secure_clip_norm,
        weights_up_to=1 if federation.weighting == "uniform" else examples,
    )
