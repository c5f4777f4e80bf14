"""Held-out loss."""

import math

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.training.evaluation import Evaluation, clipped_loss_sum, evaluate, example_losses
from fedlora.training.objectives import token_losses


def test_evaluations_of_parts_add_up_to_the_evaluation_of_the_whole(base, adapter, batch):
    """Loss sums and tokens of single rows add up to those of the batch."""
    rows = [type(batch)(batch.input_ids[[i]], batch.labels[[i]]) for i in range(4)]
    parts = sum((evaluate(base, adapter, [row]) for row in rows), Evaluation(loss_sum=0, tokens=0))
    whole = evaluate(base, adapter, [batch])
    assert parts.tokens == whole.tokens
    assert parts.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    assert whole == evaluate(base, adapter, rows[:0]) + whole


def test_no_adapter_means_the_base_alone(base, adapter, batch):
    """Its loss is that with the initial adapter, whatever was on it; it can train afterwards."""
    base.load_adapter(adapter)
    initial = AdapterState.initial(base.spec, seed=0)
    alone = evaluate(base, None, [batch])
    assert alone == evaluate(base, initial, [batch])
    assert alone != evaluate(base, adapter, [batch])
    assert all(parameter.requires_grad for parameter in base.parameters)


def test_dropout_is_off(base, adapter, batch):
    """Evaluating twice after training mode gives the same, and leaves no gradient behind."""
    base.model.train()
    first = evaluate(base, adapter, [batch])
    base.model.train()
    assert evaluate(base, adapter, [batch]) == first
    assert not base.model.training
    assert all(parameter.grad is None for parameter in base.parameters)


def test_loss_is_per_token_and_perplexity_its_exponential(base, adapter, batch):
    """Both come from the token losses; no tokens give no number, a huge loss an infinite one."""
    with torch.no_grad():
        base.load_adapter(adapter)
        losses, tokens = token_losses(base, batch)
    evaluation = evaluate(base, adapter, [batch])
    assert evaluation.loss == pytest.approx(float(losses.sum() / tokens.sum()))
    assert evaluation.perplexity == math.exp(evaluation.loss)
    assert math.isnan(Evaluation(loss_sum=0, tokens=0).perplexity)
    assert Evaluation(loss_sum=1e6, tokens=1).perplexity == math.inf


def test_losses_of_examples_are_means_over_their_own_tokens(base, adapter, batch):
    """In the order of the batches, with the adapter or of the base alone."""
    with torch.no_grad():
        base.load_adapter(adapter)
        losses, tokens = token_losses(base, batch)
    means = (losses / tokens).tolist()
    assert example_losses(base, adapter, [batch, batch]) == pytest.approx([*means, *means])
    assert example_losses(base, None, [batch]) != pytest.approx(means)


def test_a_clipped_sum_is_over_examples(base, adapter, batch):
    """Each counts by its own mean loss per token, but by no more than the largest."""
    with torch.no_grad():
        base.load_adapter(adapter)
        losses, tokens = token_losses(base, batch)
    means = (losses / tokens.clamp(min=1)).double()
    largest = float(means.median())
    total = clipped_loss_sum(base, adapter, [batch], largest=largest)
    assert total == pytest.approx(float(means.clamp(max=largest).sum()))
    assert total < clipped_loss_sum(base, adapter, [batch], largest=100.0)
    assert clipped_loss_sum(base, adapter, [], largest=1.0) == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, -5.0, 1e30])
def test_no_example_weighs_more_than_the_largest_loss(base, adapter, batch, loss):
    """Whatever the model makes of it."""
    values = torch.tensor([1.0, loss]), torch.tensor([1, 1])
    with_it = clipped_loss_sum(base, adapter, [batch], largest=2.0, measure=lambda *_: values)
    assert 0 <= with_it - 1.0 <= 2.0
