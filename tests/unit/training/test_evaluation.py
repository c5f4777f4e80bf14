"""Held-out loss."""

import math

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.training.evaluation import (
    Evaluation,
    Share,
    clipped_loss_sum,
    evaluate,
    example_losses,
)
from fedlora.training.objectives import sft_loss, sft_measure, token_losses


def measured(base, state, batches):
    return evaluate(base, state, batches, measure=sft_measure)


def losses_of(base, state, batches):
    return example_losses(base, state, batches, losses=sft_loss)


def clipped(base, state, batches, *, largest):
    return clipped_loss_sum(base, state, batches, losses=sft_loss, largest=largest)


def test_evaluations_of_parts_add_up_to_the_evaluation_of_the_whole(base, adapter, batch):
    """Loss sums and tokens of single rows add up to those of the batch."""
    rows = [type(batch)(batch.input_ids[[i]], batch.labels[[i]]) for i in range(4)]
    parts = sum((measured(base, adapter, [row]) for row in rows), Evaluation(loss_sum=0, tokens=0))
    whole = measured(base, adapter, [batch])
    assert parts.tokens == whole.tokens
    assert parts.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    assert parts.shares == whole.shares
    assert whole == measured(base, adapter, rows[:0]) + whole


def test_no_adapter_means_the_base_alone(base, adapter, batch):
    """Its loss is that with the initial adapter, whatever was on it; it can train afterwards."""
    base.load_adapter(adapter)
    initial = AdapterState.initial(base.spec, seed=0)
    alone = measured(base, None, [batch])
    assert alone == measured(base, initial, [batch])
    assert alone != measured(base, adapter, [batch])
    assert all(parameter.requires_grad for parameter in base.parameters)


def test_dropout_is_off(base, adapter, batch):
    """Evaluating twice after training mode gives the same, and leaves no gradient behind."""
    base.model.train()
    first = measured(base, adapter, [batch])
    base.model.train()
    assert measured(base, adapter, [batch]) == first
    assert not base.model.training
    assert all(parameter.grad is None for parameter in base.parameters)


def test_loss_is_per_token_and_perplexity_its_exponential(base, adapter, batch):
    """Both come from the token losses; no tokens give no number, a huge loss an infinite one."""
    with torch.no_grad():
        base.load_adapter(adapter)
        losses, tokens = token_losses(base, batch)
    evaluation = measured(base, adapter, [batch])
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
    assert losses_of(base, adapter, [batch, batch]) == pytest.approx([*means, *means])
    assert losses_of(base, None, [batch]) != pytest.approx(means)


def test_a_clipped_sum_is_over_examples(base, adapter, batch):
    """Each counts by its own mean loss per token, but by no more than the largest."""
    with torch.no_grad():
        base.load_adapter(adapter)
        losses, tokens = token_losses(base, batch)
    means = (losses / tokens.clamp(min=1)).double()
    largest = float(means.median())
    total = clipped(base, adapter, [batch], largest=largest)
    assert total == pytest.approx(float(means.clamp(max=largest).sum()))
    assert total < clipped(base, adapter, [batch], largest=100.0)
    assert clipped(base, adapter, [], largest=1.0) == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, -5.0, 1e30])
def test_no_example_weighs_more_than_the_largest_loss(base, adapter, batch, loss):
    """Whatever the model makes of it."""
    values = torch.tensor([1.0, loss])
    with_it = clipped_loss_sum(base, adapter, [batch], losses=lambda *_: values, largest=2.0)
    assert 0 <= with_it - 1.0 <= 2.0


def test_tokens_are_right_that_the_model_would_have_written_next(base, adapter, batch):
    """Of each row, the most probable tokens given those before are compared with the labels."""
    base.load_adapter(adapter)
    base.model.eval()
    with torch.no_grad():
        guessed = base.model(input_ids=batch.input_ids).logits[:, :-1].argmax(dim=-1)
    wanted = batch.labels[:, 1:]
    wanted[0], wanted[1, 3:] = torch.where(wanted[0] == -100, -100, guessed[0]), -100
    wanted[2, -1] = guessed[2, -1]
    shares = measured(base, adapter, [batch]).shares
    there = wanted != -100
    right = int(((guessed == wanted) & there).sum())
    assert shares["token_accuracy"] == Share(total=right, count=int(there.sum()))
    rows = [bool(there[i].any()) for i in range(4)]
    exact = [rows[i] and bool((guessed == wanted)[i][there[i]].all()) for i in range(4)]
    assert exact[0]
    assert not all(exact)
    assert shares["exact_match"] == Share(total=sum(exact), count=sum(rows))


def test_a_row_without_supervised_tokens_is_no_match(base, adapter, batch):
    """Nothing was asked, so nothing is right; without any there are no means."""
    batch.labels[:] = -100
    found = measured(base, adapter, [batch])
    assert found.shares == {
        "token_accuracy": Share(total=0, count=0),
        "exact_match": Share(total=0, count=0),
    }
    assert all(math.isnan(value) for value in found.means.values())


def test_shares_of_some_rows_and_of_others_add_up_by_name():
    """Where one site does not say, the mean is of those that do."""
    one = Evaluation(loss_sum=1, tokens=10, shares={"exact_match": Share(total=1, count=4)})
    two = Evaluation(loss_sum=2, tokens=30, shares={"exact_match": Share(total=3, count=4)})
    silent = Evaluation(loss_sum=3, tokens=60)
    total = one + silent + two
    assert (total.loss_sum, total.tokens) == (6, 100)
    assert total.means == {"exact_match": 0.5}


def test_macro_f1_is_the_mean_of_the_classes_f1():
    """Against the definition, over two sites; a class that nobody has or guesses does not count."""
    truth, guess = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 2]

    def counted(rows):
        shares = {
            f"f1.{k}": Share(
                total=2 * sum(truth[i] == guess[i] == k for i in rows),
                count=sum(truth[i] == k for i in rows) + sum(guess[i] == k for i in rows),
            )
            for k in range(4)
        }
        return Evaluation(loss_sum=0, tokens=len(rows), shares=shares)

    by_class = [2 * 2 / 5, 2 * 1 / 4, 2 * 1 / 3]
    total = counted([0, 3, 5]) + counted([1, 2, 4])
    assert total.means == {"macro_f1": pytest.approx(sum(by_class) / 3)}
