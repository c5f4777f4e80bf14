"""Losses of single examples."""

import shutil

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from fedlora.training.base_model import BaseModel, resolve
from fedlora.training.objectives import sft_loss, token_losses
from tests.oracles import loss_of_each_example


@torch.no_grad()
def test_the_loss_of_each_example_is_the_oracles(base, adapter, batch):
    """Padding, prompts and the other examples do not change an example's loss."""
    base.load_adapter(adapter)
    base.model.eval()
    expected = loss_of_each_example(base.model, batch.input_ids, batch.labels)
    torch.testing.assert_close(sft_loss(base, batch), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_token_losses_are_sums_and_counts(base, adapter, batch):
    """An example's summed loss over its number of supervised tokens is its mean."""
    base.load_adapter(adapter)
    base.model.eval()
    losses, tokens = token_losses(base, batch)
    assert tokens.tolist() == (batch.labels != -100).sum(dim=1).tolist()
    torch.testing.assert_close(losses / tokens, sft_loss(base, batch))


def test_an_example_without_supervised_tokens_has_no_loss_and_no_gradient(base, batch):
    """It gives zero rather than 0 / 0, and the others keep theirs."""
    with torch.no_grad():
        expected = sft_loss(base, batch)
    batch.labels[1] = -100
    losses = sft_loss(base, batch)
    losses.sum().backward()
    base.model.zero_grad()
    assert losses[1] == 0
    torch.testing.assert_close(losses[[0, 2, 3]], expected[[0, 2, 3]])


@torch.no_grad()
def test_the_loss_is_the_oracles_for_another_architecture(recipe_of, tmp_path, batch):
    """Gemma 2 caps its logits, slides its attention window and repeats its keys."""
    shutil.copytree(resolve("embedded", None), tmp_path, dirs_exist_ok=True)
    torch.manual_seed(0)
    Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=2048,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            sliding_window=4,
            final_logit_softcapping=0.5,
            pad_token_id=1,
        )
    ).save_pretrained(tmp_path)
    for length in (256, 512):  # plain attention, and transformers' choice
        base = BaseModel.load(recipe_of(base_model=str(tmp_path), sequence_len=length))
        base.model.eval()
        expected = loss_of_each_example(base.model, batch.input_ids, batch.labels)
        torch.testing.assert_close(sft_loss(base, batch), expected, rtol=1e-4, atol=1e-5)
