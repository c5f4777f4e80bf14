"""LoRA put on a network by PEFT."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from fedlora.adapter import AdapterSpec
from fedlora.errors import BaseModelError
from fedlora.recipe import Recipe
from fedlora.tensors import TensorSpec
from fedlora.training.base_model.classifier import head_modules, make_trainable
from fedlora.training.base_model.network import quietly


def with_lora(network: PreTrainedModel, spec: AdapterSpec, recipe: Recipe) -> PeftModel:
    """Put float32 factors on the network, and freeze all else but its heads, if it has any.

    Raises:
        BaseModelError: PEFT finds no such modules, or cannot adapt them.
    """
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # PEFT divides it, any number will do
        lora_dropout=recipe.lora_dropout,
        target_modules=list(spec.target_modules),
        exclude_modules=head_modules(spec) or None,
        task_type=None if spec.heads else "CAUSAL_LM",  # for SEQ_CLS, PEFT would copy the head
    )
    try:  # PEFT draws initial values, which ours replace
        with quietly(), torch.random.fork_rng(devices=[]):
            model = get_peft_model(network, config)
    except ValueError as error:
        raise BaseModelError(f"lora_target_modules: {error}") from error
    make_trainable(network, spec.heads)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # Autocast would cast the float32 copy of the input back again: 2 to 10 % of a step.
            module.cast_input_dtype_enabled = False
    if recipe.gradient_checkpointing:
        network.activation_checkpointing_enable()
    return model


def peft_name(tensor: TensorSpec) -> str:
    """Return what a tensor is called in the network; a head has no adapter's name in it."""
    adapter = ".default.weight" if tensor.is_factor else ""
    return f"base_model.model.{tensor.name}{adapter}"
