"""The mechanism of a site's private steps, as its recipe asks for it, and its test without data."""

from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.adaptive_clip import AdaptiveClip
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.source import NoiseSource
from fedlora.recipe import Recipe
from fedlora.runtime.account import noise_stream
from fedlora.runtime.charges import training_charge


def private_steps(recipe: Recipe, charge: Charge, source: NoiseSource) -> DpSgd:
    """Return the mechanism that makes the gradients of the steps that were charged."""
    return DpSgd(
        charge,
        expected_examples=recipe.batch_size,
        source=source,
        adaptive=_adaptive(recipe, charge),
        rows=recipe.rows_of_example,
    )


def self_test(recipe: Recipe, site: str) -> None:
    """Take a synthetic private step and measure its noise, with nothing read and nothing charged.

    Its noise is of a stream of its own: what a round draws does not depend on it.

    Raises:
        RunError: the step is not noise of the standard deviation that a round is charged for.
        BudgetError: no noise keeps what the recipe promises.
    """
    charge = training_charge(recipe, site, steps=recipe.federation.local_steps)
    private_steps(recipe, charge, noise_stream(recipe, f"{site}/self-test")).self_test()


def _adaptive(recipe: Recipe, charge: Charge) -> AdaptiveClip | None:
    """Return how the clip norm follows the quantile that the recipe asks for, if it does."""
    quantile = recipe.privacy.clip_quantile
    if quantile is None:
        return None
    # The paper's twentieth of the batch, but never so little that the count takes most of z.
    deviation = max(recipe.batch_size / 20, charge.noise_multiplier)
    return AdaptiveClip(quantile=quantile, learning_rate=0.2, count_deviation=deviation)
