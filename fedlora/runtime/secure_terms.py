"""What a recipe says of its secure sums: the same at the sites and at the aggregator."""

from fedlora.privacy.secure_aggregation.fixed_point import FixedPoint
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.recipe import Recipe

STAGES = ("share", "mask", "sign", "reveal")
"""What follows a cohort's training, each a Flower message ``train.STAGE``."""


def terms_of(recipe: Recipe) -> Terms:
    """Return what an attempt goes by."""
    return Terms(
        members=recipe.cohort_size,
        threshold=recipe.threshold,
        colluders=recipe.colluders,
        signed=recipe.privacy.threat_model == "malicious-aggregator",
    )


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
