"""Base models of many architectures, each so small that a test can make it."""

import re

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from fedlora.adapter import AdapterState
from fedlora.errors import BaseModelError
from fedlora.peft_folder import write_peft_folder
from fedlora.training.base_model import BaseModel, describe
from fedlora.training.base_model.network import load_skeleton, quietly
from fedlora.training.base_model.probe import require_none
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss
from tests.tiny_models import (
    ARCHITECTURES,
    MORE_ARCHITECTURES,
    configuration,
    random_tokens,
    tiny_base,
    tiny_recipe,
    write_tiny,
)

ALL = [*ARCHITECTURES, *MORE_ARCHITECTURES]
HELD = [{}, {"adapter": "qlora"}, {"load_in_8bit": True}]
BATCH = random_tokens(9, 5)


def after_a_step(base: BaseModel, **keys: object) -> AdapterState:
    """Return the adapter after one step from what the base holds."""
    recipe = tiny_recipe(learning_rate=1e-2, **keys)
    return train_local(
        base,
        base.adapter(),
        [[BATCH]],
        gradient=plain_gradient(recipe),
        part=base.spec,
        recipe=recipe,
        first_step=0,
        total_steps=2,
        seed="0",
    ).state


def gradients(base: BaseModel) -> torch.Tensor:
    base.model.train()
    sft_loss(base, BATCH).sum().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in base.parameters])
    base.model.zero_grad()
    return flat


@pytest.mark.parametrize("architecture", ALL)
def test_an_adapter_is_trained_and_peft_computes_the_same_with_it(tmp_path, architecture):
    """One step moves every factor; the folder that is written gives PEFT the logits of ours."""
    base = tiny_base(tmp_path / "base", architecture, peft_use_rslora=True)
    before, trained = base.adapter(), after_a_step(base)
    for (tensor, old), (_, new) in zip(before.factors(), trained.factors(), strict=True):
        assert not torch.equal(old, new), tensor.name
    write_peft_folder(trained, tmp_path / "adapter")
    with quietly(), torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        expected = theirs(input_ids=BATCH.input_ids, use_cache=False).logits[0]
        base.model.eval()
        keep = torch.zeros_like(BATCH.input_ids, dtype=torch.bool)
        keep[0] = True
        torch.testing.assert_close(base.logits(BATCH.input_ids, keep=keep), expected)


@pytest.mark.parametrize("held", HELD[1:], ids=["nf4", "int8"])
@pytest.mark.parametrize("architecture", ALL)
def test_an_adapter_is_trained_over_a_quantised_base(tmp_path, architecture, held):
    """One step moves every factor."""
    base = tiny_base(tmp_path, architecture, **held)
    before, trained = base.adapter(), after_a_step(base)
    for (tensor, old), (_, new) in zip(before.factors(), trained.factors(), strict=True):
        assert not torch.equal(old, new), tensor.name


@pytest.mark.parametrize("held", HELD, ids=["plain", "nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "falcon", "qwen3_moe"])
def test_checkpointing_changes_no_gradient(tmp_path, architecture, held):
    """However the base is held."""
    plain = tiny_base(tmp_path, architecture, **held)
    less = tiny_base(tmp_path, architecture, gradient_checkpointing=True, **held)
    torch.testing.assert_close(gradients(less), gradients(plain))


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_bigcode"])
def test_the_base_draws_no_dropout(tmp_path, architecture):
    """These have it by default; an example's gradient would depend on those before it."""
    folder, config = str(tmp_path), configuration(architecture)
    dropouts = [key for key in config.to_dict() if "drop" in key]
    config.update(dict.fromkeys(dropouts, 0.5))
    write_tiny(tmp_path, config)
    base = BaseModel.load(tiny_recipe(base_model=folder))
    base.load_adapter(AdapterState.initial(base.spec, seed=0))
    assert dropouts
    with torch.no_grad():
        base.model.train()
        in_training = sft_loss(base, BATCH)
        base.model.eval()
        assert torch.equal(in_training, sft_loss(base, BATCH))


def test_a_part_of_the_configuration_draws_no_dropout_either(tmp_path):
    """A model that sees, too, has a configuration of its own for what reads."""
    config = AutoConfig.for_model("gemma3", text_config={"attention_dropout": 0.5})
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).text_config.attention_dropout == 0.5
    assert load_skeleton(tmp_path).config.text_config.attention_dropout == 0


def test_the_experts_of_a_mixture_are_not_adapted(tmp_path):
    """Neither are its routers; what all tokens go through is."""
    write_tiny(tmp_path, configuration("qwen3_moe"))
    spec = describe(tiny_recipe(base_model=str(tmp_path))).spec
    assert spec.target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")


def test_names_by_which_peft_means_experts_are_refused(tmp_path):
    """In DeepSeek's mixtures the layers that are none have names that PEFT gives to experts."""
    config = AutoConfig.for_model(
        "deepseek_v3",
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        first_k_dense_replace=1,
    )
    folder = str(write_tiny(tmp_path, config))
    with pytest.raises(BaseModelError, match="down_proj, gate_proj, up_proj are names") as caught:
        BaseModel.load(tiny_recipe(base_model=folder))
    named = re.search(r"write \[(.+)\]", str(caught.value))[1].split(", ")
    assert BaseModel.load(tiny_recipe(base_model=folder, lora_target_modules=named))


def test_what_a_state_space_model_never_calls_is_refused(tmp_path):
    """Jamba uses the weight of dt_proj by itself: an adapter on it would never be seen."""
    config = AutoConfig.for_model(
        "jamba",
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=2,
        mamba_d_state=8,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        use_mamba_kernels=False,
    )
    folder = str(write_tiny(tmp_path, config))
    with pytest.raises(BaseModelError, match="dt_proj are never called by Jamba") as caught:
        BaseModel.load(tiny_recipe(base_model=folder))
    named = re.search(r"write \[(.+)\]", str(caught.value))[1].split(", ")
    assert BaseModel.load(tiny_recipe(base_model=folder, lora_target_modules=named))


def test_a_head_is_no_target_to_write_instead():
    """It is trained whole, and no module of ``lora_target_modules``."""
    names = ["layer.0.query.lora_A", "layer.0.key.lora_A", "classifier.weight"]
    with pytest.raises(BaseModelError, match=r"write \[query\]"):
        require_none(names[1:2], among=dict.fromkeys(names), what="are never called")


def test_what_peft_refuses_is_an_error_of_the_base_model(tmp_path):
    """Mamba's out_proj; the rest of it can be adapted."""
    keys = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
    folder = str(write_tiny(tmp_path, AutoConfig.for_model("mamba", **keys)))
    with pytest.raises(BaseModelError, match=r"lora_target_modules: .*'out_proj' is incompatible"):
        BaseModel.load(tiny_recipe(base_model=folder))
    assert BaseModel.load(tiny_recipe(base_model=folder, lora_target_modules=["in_proj"]))


def test_an_encoder_is_no_causal_language_model(tmp_path):
    """BERT's tokens see those behind them, unless its configuration makes it a decoder."""
    keys = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = str(write_tiny(tmp_path / "e", AutoConfig.for_model("bert", **keys)))
    with pytest.raises(BaseModelError, match="BertLMHeadModel lets tokens see those behind them"):
        BaseModel.load(tiny_recipe(base_model=folder))
    decoder = AutoConfig.for_model("bert", **keys, is_decoder=True)
    assert BaseModel.load(tiny_recipe(base_model=str(write_tiny(tmp_path / "d", decoder))))
