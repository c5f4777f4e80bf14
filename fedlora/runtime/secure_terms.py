"""What a recipe says of its secure sums: the same at the sites and at the aggregator."""

import hashlib
import math

from fedlora.privacy.secure_aggregation.graph import derived
from fedlora.privacy.secure_aggregation.terms import Terms
from fedlora.recipe import Recipe
from fedlora.sections import LARGEST_COMPLETE
from fedlora.signing import canonical
from fedlora.wire.codec import Envelope

STAGES = ("share", "mask", "sign", "reveal")
"""What follows a cohort's training, each a Flower message ``train.STAGE``."""

REVEALED = "The site's update is in a sum already: there is none over other members."
"""What a site says whose update is to be in a second sum."""


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


def context_of(recipe: Recipe, envelope: Envelope, *, payload: bytes) -> bytes:
    """Return the digest of what all members must have been given alike.

    Args:
        recipe: of the run.
        envelope: the global adapter, run and round.
        payload: the encoded global adapter.
    """
    facts = {
        "recipe": recipe.digest,
        "spec": envelope.spec.digest,  # the base's digest is in it
        "adapter": hashlib.sha256(payload).hexdigest(),
        "run": envelope.run,
        "round": envelope.round,
    }
    return hashlib.sha256(canonical(facts)).digest()
