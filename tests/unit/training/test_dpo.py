"""Losses of pairs of answers, against a reference that is the same model."""

import math

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.training.objectives import dpo_loss, dpo_margins, sft_loss
from tests.oracles import loss_of_each_example
from tests.tiny_models import dpo_of, random_tokens, tiny_base

LENGTHS = 12, 5, 16, 9


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a tiny Llama in float32, with an adapter that changes it."""
    return tiny_base(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def batch():
    """Return two pairs of uneven length."""
    return random_tokens(*LENGTHS)


def log_probabilities(base, batch):
    """Return each row's, of all its supervised tokens, from the model's own logits."""
    counts = (batch.labels[:, 1:] != -100).sum(dim=1)
    return -loss_of_each_example(base.model, batch.input_ids, batch.labels) * counts


@torch.no_grad()
@pytest.mark.parametrize("of", ["base", "adapter"])
def test_margins_are_how_far_preferences_moved_from_the_reference(base, batch, of):
    """Summed over all tokens of an answer, for the adapter and for either kind of reference."""
    other = AdapterState(spec=base.spec, values=base.adapter().values.flip(0))
    own, reference = base.adapter(), other if of == "adapter" else None
    with base.frozen(reference):
        before = log_probabilities(base, batch)
    moved = log_probabilities(base, batch) - before
    came = dpo_margins(base, batch, reference=reference)
    torch.testing.assert_close(came, moved[0::2] - moved[1::2], rtol=1e-4, atol=1e-4)
    assert came.dtype == torch.float32
    assert came.abs().min() > 0.01
    assert torch.equal(base.adapter().values, own.values)


def test_the_loss_falls_with_the_margin():
    """It is log 2 where nothing is preferred; β scales the margin; smoothing mixes both ways."""
    margins = torch.tensor([-3.0, 0.0, 3.0])
    losses = dpo_loss(margins, beta=0.5)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(1.5 * s)) for s in (1, 0, -1)])
    assert losses[1] == pytest.approx(math.log(2))
    mixed = dpo_loss(margins, beta=0.5, label_smoothing=0.25)
    torch.testing.assert_close(mixed, 0.75 * losses + 0.25 * losses.flip(0))


def test_an_adapter_is_no_further_from_itself(base, batch):
    """With the received adapter as reference, the first step has margins of zero, to the bit."""
    with base.training(base.spec):
        margins = dpo_margins(base, batch, reference=base.adapter())
    assert margins.tolist() == [0, 0]
    assert margins.requires_grad


@pytest.mark.parametrize("reference", ["base", "adapter"])
def test_the_reference_pass_leaves_the_model_as_it_was(base, batch, reference):
    """Mode, values, and which factors are trained; and nothing of it gets a gradient."""
    state = base.adapter()
    with base.training(base.spec.part("B")):
        wanted = [parameter.requires_grad for parameter in base.parameters]
        with base.frozen(state if reference == "adapter" else None):
            assert not base.model.training
            assert not sft_loss(base, batch).requires_grad
        assert [parameter.requires_grad for parameter in base.parameters] == wanted
        assert set(wanted) == {True, False}
        assert base.model.training
    assert torch.equal(base.adapter().values, state.values)


def test_a_reference_of_another_adapter_is_refused(base, tmp_path, batch):
    """Before anything is computed; the adapter on the base stays."""
    other, state = tiny_base(tmp_path, lora_r=2), base.adapter()
    with pytest.raises(AdapterError, match="tensors are not the"):
        dpo_margins(base, batch, reference=other.adapter())
    assert torch.equal(base.adapter().values, state.values)


def test_the_reference_pass_draws_nothing(tmp_path, batch):
    """Dropout, of the adapter and of the base, is for the pass that is learned from alone."""
    base = tiny_base(tmp_path, lora_dropout=0.3)
    for layer in base.model.base_model.model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    with torch.random.fork_rng(), base.training(base.spec):
        torch.manual_seed(0)
        expected = sft_loss(base, batch), torch.get_rng_state()
        for reference in (None, base.adapter()):
            torch.manual_seed(0)
            with base.frozen(reference):
                first = sft_loss(base, batch)
                assert torch.equal(sft_loss(base, batch), first)
            came = sft_loss(base, batch), torch.get_rng_state()
            assert torch.equal(came[0], expected[0])
            assert torch.equal(came[1], expected[1])


def test_gradients_over_nf4_are_those_before_any_evaluation(tmp_path, batch):
    """A reference pass is an evaluation: it must not spoil the base for the pass that learns."""
    base = tiny_base(tmp_path, adapter="qlora")

    def gradient(losses):
        with base.training(base.spec) as trained:
            losses.sum().backward()
            trained.take_gradients()
            return torch.cat([tensor.grad.flatten() for tensor in trained.tensors])

    before = gradient(sft_loss(base, batch))
    first = gradient(dpo_of()(base, batch))
    assert torch.equal(gradient(dpo_of()(base, batch)), first)
    assert torch.equal(gradient(sft_loss(base, batch)), before)
