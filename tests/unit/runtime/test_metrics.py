"""What a site measured, as numbers on the way."""

import pytest

from fedlora.errors import WireError
from fedlora.gate.inspection import inspect_metrics
from fedlora.runtime.metrics import eval_metrics, shares_of
from fedlora.training.evaluation import Evaluation, Share

MEASURED = Evaluation(
    loss_sum=3.5,
    tokens=7,
    shares={
        "token_accuracy": Share(total=3, count=7),
        "f1.0": Share(total=2, count=5),
        "f1.12": Share(total=0, count=0),
    },
)


def test_an_evaluation_arrives_as_it_was():
    """Each share as two whole numbers, which the gate lets pass."""
    metrics = eval_metrics(MEASURED)
    assert metrics == {
        "eval_loss_sum": 3.5,
        "eval_tokens": 7,
        "eval_token_accuracy_sum": 3,
        "eval_token_accuracy_count": 7,
        "eval_f1_sum.0": 2,
        "eval_f1_count.0": 5,
        "eval_f1_sum.12": 0,
        "eval_f1_count.12": 0,
    }
    assert shares_of(inspect_metrics(metrics, unit="none")) == MEASURED.shares


@pytest.mark.parametrize(
    "changed",
    [
        {"eval_token_accuracy_sum": 8},
        {"eval_token_accuracy_sum": -1},
        {"eval_token_accuracy_sum": 1.5},
        {"eval_token_accuracy_sum": None},
    ],
)
def test_a_share_that_is_none_is_refused(changed):
    """More than all, fewer than none, no whole number, or of nothing."""
    metrics = {k: v for k, v in (eval_metrics(MEASURED) | changed).items() if v is not None}
    with pytest.raises(WireError, match=r"^token_accuracy: a sum of at least 0 and a count"):
        shares_of(metrics)
