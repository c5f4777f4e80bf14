"""What may leave a site, and what the aggregator admits: the same checks."""

import math
from dataclasses import replace

import pytest

from fedlora.adapter import AdapterUpdate, InspectedUpdate
from fedlora.errors import InspectionError, PolicyError
from fedlora.gate.inspection import (
    Leave,
    inspect_metrics,
    inspect_public_metrics,
    require_sound,
)
from fedlora.gate.metrics import ALLOWED, COUNTED
from fedlora.gate.policy import Policy
from tests.strategies import make_spec, make_update

SPEC = make_spec()
FREE = Leave(unit="none", purpose="train", charges=0)


def trained(num_examples: int = 3, **kwargs: object) -> AdapterUpdate:
    values = make_update(**kwargs).values
    return AdapterUpdate(spec=kwargs.get("spec", SPEC), values=values, num_examples=num_examples)


def test_a_good_update_passes_as_it_is():
    """The result is the only type that is encoded for the network; its values are untouched."""
    update = trained()
    result = FREE.inspect_update(update, spec=SPEC, examples=range(1, 4))
    assert type(result) is InspectedUpdate
    assert result.spec is update.spec
    assert result.values is update.values
    assert result.num_examples == 3


def test_what_hides_examples_leaves_by_a_charge_alone():
    """Without a new row in the ledger there is nothing to inspect an answer with."""
    for charges in (0, -1):
        with pytest.raises(InspectionError, match="was not charged: the site's ledger has no new"):
            Leave(unit="example", purpose="train", charges=charges)
    update, noised = trained(), {"eval_loss_sum": 1.5, "eval_tokens": 10}
    broken = replace(update, values=update.values * math.nan)
    for unit, charges in (("example", 1), ("client", 0)):
        leave = Leave(unit=unit, purpose="evaluate", charges=charges)
        sent = leave.inspect_update(update, spec=SPEC, examples=range(1, 4))
        assert type(sent) is InspectedUpdate
        assert leave.inspect_metrics(noised) == noised
        with pytest.raises(InspectionError, match="not finite"):
            leave.inspect_update(broken, spec=SPEC, examples=range(1, 4))
        with pytest.raises(InspectionError, match="train_loss' may not leave"):
            leave.inspect_metrics({"train_loss": 1.0})
        trains = replace(leave, purpose="train")
        assert trains.inspect_metrics({}) == {}
        with pytest.raises(InspectionError, match="leaves without metrics"):
            trains.inspect_metrics(noised)


@pytest.mark.parametrize(
    "other", [make_spec(rank=3), make_spec(alpha=1.0), make_spec(base_digest="")]
)
def test_an_update_of_another_adapter_stays(other):
    """The specification is compared as a whole, by digest."""
    with pytest.raises(
        InspectionError, match=f"of adapter {other.digest[:12]}, but {SPEC.digest[:12]}"
    ):
        require_sound(trained(spec=other), spec=SPEC, examples=range(1, 4))


@pytest.mark.parametrize(("claimed", "passes"), [(-1, 0), (0, 0), (1, 1), (8, 1), (9, 0)])
def test_the_number_of_examples_is_within_what_the_recipe_allows(claimed, passes):
    """Between the two ends, both included; the number is a weight."""
    if passes:
        require_sound(trained(claimed), spec=SPEC, examples=range(1, 9))
    else:
        with pytest.raises(
            InspectionError, match=f"claims {claimed}, but the recipe allows 1 to 8"
        ):
            require_sound(trained(claimed), spec=SPEC, examples=range(1, 9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_an_update_that_is_not_finite_stays(bad, place):
    """One value anywhere is enough; the first tensor that holds one is named, others counted."""
    update = trained()
    update.values[place] = bad
    names = [t.name for t, values in update.factors() if not values.isfinite().all()]
    with pytest.raises(InspectionError, match=f"^Values of {names[0]} are not finite"):
        require_sound(update, spec=SPEC, examples=range(1, 4))
    update.values.fill_(bad)
    with pytest.raises(InspectionError, match=f"and of {len(SPEC.tensors) - 1} other tensors"):
        require_sound(update, spec=SPEC, examples=range(1, 4))


def test_allowed_metrics_pass_as_they_are():
    """What is returned is a copy: what the caller adds later was not inspected."""
    metrics = {"train_loss": 1.5, "eval_loss_sum": -0.0, "eval_tokens": 10**6}
    metrics |= {"public_loss_sum": 2.5, "public_tokens": 7} | dict.fromkeys(COUNTED, 3)
    assert metrics.keys() == ALLOWED
    result = inspect_metrics(metrics, unit="none")
    assert result == metrics
    metrics["name"] = 1
    assert "name" not in result
    assert inspect_metrics({}, unit="none") == {}


@pytest.mark.parametrize("index", ["0", "7", "99"])
def test_a_metric_of_a_class_ends_in_its_number(index):
    """So each class may have its own."""
    metrics = {f"eval_f1_sum.{index}": 1, f"eval_f1_count.{index}": 2}
    assert inspect_metrics(metrics, unit="none") == metrics


_NO_METRICS = ["accuracy", "", "train_loss ", "Train_loss", "x" * 10_000]
_NO_METRICS += ["eval_f1_sum.100", "eval_f1_sum.x", "eval_f1_sum.", "eval_loss_sum.1"]


@pytest.mark.parametrize("name", _NO_METRICS)
def test_a_metric_that_is_not_on_the_list_stays(name):
    """A name can carry data too, so the list is closed, and the message cuts it short."""
    with pytest.raises(InspectionError, match="may not leave the site; allowed are") as caught:
        inspect_metrics({"train_loss": 1.0, name: 1.0}, unit="none")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_stays(value):
    """It would spoil every mean that it enters."""
    with pytest.raises(InspectionError, match=f"train_loss is {value}; a finite number"):
        inspect_metrics({"train_loss": value}, unit="none")


@pytest.mark.parametrize("unit", ["example", "client"])
def test_under_privacy_only_what_was_noised_leaves(unit):
    """A training loss, however harmless it looks, was computed on private rows."""
    noised = {"eval_loss_sum": 1.5, "eval_tokens": 10, "public_loss_sum": 2.5, "public_tokens": 7}
    assert inspect_metrics(noised, unit=unit) == noised
    with pytest.raises(InspectionError, match="train_loss' may not leave"):
        inspect_metrics({"train_loss": 1.0}, unit=unit)
    for name in (*COUNTED, "eval_f1_sum.3"):
        with pytest.raises(InspectionError, match=f"'{name}' may not leave"):
            inspect_metrics({**noised, name: 3}, unit=unit)


def test_counts_that_a_policy_does_not_name_are_withheld():
    """The evaluation goes on without them; what is named leaves, each class by the same word."""
    keys = ["eval_loss_sum", "eval_tokens", "eval_f1_sum", "eval_f1_count"]
    named = [metric for metric in Policy().metrics if metric.name in keys]
    leave = Leave(unit="none", purpose="evaluate", charges=0, policy=Policy(metrics=named))
    kept = {"eval_loss_sum": 3.5, "eval_tokens": 2, "eval_f1_sum.4": 2, "eval_f1_count.4": 3}
    withheld = {"eval_label_accuracy_sum": 1, "eval_label_accuracy_count": 2}
    assert leave.inspect_metrics(kept | withheld) == kept
    with pytest.raises(PolicyError, match="'train_loss' is to leave"):
        leave.inspect_metrics({**kept, "train_loss": 1.0})
    with pytest.raises(PolicyError, match=r"metrics\.eval_f1_sum\.4: .*outside"):
        leave.inspect_metrics({**kept, "eval_f1_sum.4": -1})


def test_under_privacy_the_number_of_examples_is_fixed():
    """How many were drawn is private; every client says what is expected."""
    require_sound(trained(8), spec=SPEC, examples=range(8, 9))
    with pytest.raises(InspectionError, match="claims 7, but the recipe allows 8 in a round"):
        require_sound(trained(7), spec=SPEC, examples=range(8, 9))


def test_without_a_charge_only_the_public_text_is_told():
    """Its loss can be measured by whoever has the adapter; a held-out loss stays."""
    public = {"public_loss_sum": 2.5, "public_tokens": 7}
    assert inspect_public_metrics(public) == public
    for name in sorted(ALLOWED - public.keys()):
        with pytest.raises(InspectionError, match=f"{name}' may not leave"):
            inspect_public_metrics({**public, name: 1.0})
    with pytest.raises(InspectionError, match="public_loss_sum is nan"):
        inspect_public_metrics({"public_loss_sum": math.nan})
    with pytest.raises(PolicyError, match="public_tokens"):
        inspect_public_metrics({**public, "public_tokens": 0}, policy=Policy())
