"""A hostile aggregator gets nothing from a site but errors of a closed list, and all is on record.

The list is the campaign's (``python -m simulations.campaigns hostile``), which also prints it. A
hostile trainer is in ``test_trainer.py``.
"""

from dataclasses import replace

import pytest
import torch

from simulations.campaigns import hostile_aggregator, hostile_bundle
from simulations.campaigns.gated_site import gated
from simulations.campaigns.hostile_aggregator import after_a_round, policy_of, recipe_of


@pytest.mark.slow
def test_each_instruction_of_a_hostile_aggregator_is_blocked_and_on_record():
    """Between honest ones that pass: bounds, privacy, paths, forks, bombs, receipts and more."""
    outcomes = hostile_aggregator.attempts()
    assert len(outcomes) > 100
    assert [f"{each.name}: {each.by}" for each in outcomes if not each.blocked] == []


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern:DeprecationWarning"  # flwr's own use of pathspec
)
def test_code_in_the_app_bundle_never_runs_at_a_site():
    """A real SuperLink sends it, a stock SuperNode takes it; where Flower installs it, it runs."""
    outcomes = hostile_bundle.attempts()
    assert [f"{each.name}: {each.by}" for each in outcomes if not each.blocked] == []


@pytest.mark.parametrize(("method", "stopped"), [("product", False), ("freeze-a", True)])
def test_an_a_of_the_aggregators_choice_is_stopped_where_a_is_frozen_alone(
    tmp_path, method, stopped
):
    """A limit that is documented: after the first round other methods let A move, within norms."""
    recipe = recipe_of(f"federation.method={method}")
    with gated(tmp_path, recipe, policy_of(recipe)) as site:
        assert site.gate.answer(site.instruction()).has_content()
        chosen = after_a_round(site)
        chosen = replace(chosen, values=chosen.values.clone())
        for tensor, values in chosen.factors():
            if tensor.factor == "A":
                values.copy_(torch.linspace(-0.05, 0.05, values.numel()).view(values.shape))
        reply = site.gate.answer(site.instruction(number=2, state=chosen))
        assert reply.has_error() == stopped


def test_another_run_is_another_beginning(tmp_path):
    """A limit that is documented: without approval, the answers of two runs can be compared."""
    recipe = recipe_of()
    with gated(tmp_path, recipe, policy_of(recipe)) as site:
        for run in ("one", "two"):
            assert site.gate.answer(site.instruction(run=run)).has_content()


def test_an_old_receipt_is_taken(tmp_path):
    """A limit that is documented: one may come late, so it proves nothing, and costs nothing."""
    recipe = recipe_of()
    with gated(tmp_path, recipe, policy_of(recipe)) as site:
        late = site.instruction("evaluate", number=0)
        assert site.gate.answer(site.instruction()).has_content()
        assert site.gate.answer(late).has_content()
