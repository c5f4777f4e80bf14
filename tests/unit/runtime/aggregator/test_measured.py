"""What a site says that it measured is a loss over tokens, or nothing of it counts."""

import pytest

from fedlora.errors import WireError
from fedlora.recipe import Recipe
from fedlora.runtime.aggregator.measured import Measured

RECIPE = Recipe.from_yaml("privacy: {unit: none}\ndatasets: [{path: standard-library}]")
GOOD = {"eval_loss_sum": 20.0, "eval_tokens": 10}


def test_a_loss_is_kept() -> None:
    """With the tokens that it is over."""
    measured = Measured(recipe=RECIPE, round=0)
    measured.take("north", GOOD | {"public_loss_sum": 6.0, "public_tokens": 2})
    assert measured.held_out == {"north": [20.0, 10.0]}
    assert measured.public == {"north": [6.0, 2.0]}


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (GOOD | {"eval_tokens": 0}, "eval_tokens is 0: at least 1 was expected"),
        (GOOD | {"eval_tokens": -5}, "eval_tokens is -5: at least 1 was expected"),
        (GOOD | {"eval_loss_sum": 1e308}, "eval_loss_sum is 1e+308 over 10 tokens"),
        (GOOD | {"eval_loss_sum": -1e300}, "eval_loss_sum is -1e+300 over 10 tokens"),
        (GOOD | {"public_loss_sum": 1.0, "public_tokens": 0}, "public_tokens is 0"),
        ({"eval_tokens": 10}, "holds no metric eval_loss_sum"),
    ],
)
def test_what_is_no_loss_is_refused(metrics: dict[str, float], reason: str) -> None:
    """One site could keep a run from being finished by it, or make its means infinite."""
    measured = Measured(recipe=RECIPE, round=0)
    with pytest.raises(WireError) as caught:
        measured.take("north", metrics)
    assert reason in str(caught.value)
    assert not measured.public
