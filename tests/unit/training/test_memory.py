"""The estimate of memory."""

from dataclasses import replace

import pytest
import torch

from fedlora.training.base_model import BaseModel, describe, resolve
from fedlora.training.base_model.memory import Workload, activation_bytes, weight_bytes
from fedlora.training.base_model.network import load_skeleton
from fedlora.training.base_model.targets import linear_modules

SKELETON = load_skeleton(resolve("embedded", None))
LINEARS = linear_modules(SKELETON)


def workload(**keys: object) -> Workload:
    return Workload(
        **{
            "dtype": torch.float32,
            "quantization": "none",
            "private": False,
            "adapter_size": 0,
            "examples": 4,
            "length": 128,
            "widths": sum(map(sum, LINEARS.values())),
            "layers": SKELETON.config.num_hidden_layers,
            "hidden_size": SKELETON.config.hidden_size,
            "vocabulary": SKELETON.config.vocab_size,
            "attention_heads": SKELETON.config.num_attention_heads,
            "checkpointing": False,
        }
        | keys
    )


def bytes_held(base: BaseModel) -> int:
    """Return the bytes of the frozen weights, and of the scales of those in NF4."""
    total = 0
    for parameter in base.model.parameters():
        if not parameter.requires_grad:
            total += parameter.nbytes
            if state := getattr(parameter, "quant_state", None):
                total += state.absmax.nbytes + state.state2.absmax.nbytes
    return total


def bytes_kept(base: BaseModel) -> int:
    """Return the bytes that autograd keeps of a forward pass over 4 x 128 tokens, logits apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    base.model.train()
    nowhere = torch.zeros(4, 128, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base.logits(torch.full((4, 128), 7), keep=nowhere)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_weights_take_what_the_estimate_says(base, base_nf4):
    """In float32 to the byte; in NF4 within one per cent, because blocks are rounded up."""
    keys = {"dtype": torch.float32}
    assert weight_bytes(SKELETON, LINEARS, quantization="none", **keys) == bytes_held(base)
    in_nf4 = weight_bytes(SKELETON, LINEARS, quantization="nf4", **keys)
    assert in_nf4 == pytest.approx(bytes_held(base_nf4), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [128, 512])
def test_autograd_keeps_what_the_estimate_says(recipe_of, dtype, length):
    """Within 30 per cent, for plain (128) and fused attention (512), in both dtypes."""
    recipe = recipe_of(bf16=dtype == torch.bfloat16, sequence_len=length)
    heads = SKELETON.config.num_attention_heads if length == 128 else 0
    work = workload(dtype=dtype, attention_heads=heads)
    measured = bytes_kept(BaseModel.load(recipe))
    assert activation_bytes(work) == pytest.approx(measured, rel=0.3)


def test_checkpointing_keeps_the_inputs_of_layers_alone(recipe_of):
    """They and what one layer keeps while it is computed again bound the estimate."""
    measured = bytes_kept(BaseModel.load(recipe_of(gradient_checkpointing=True, sequence_len=512)))
    work = workload(attention_heads=0)
    one_layer = activation_bytes(work) / work.layers
    estimated = activation_bytes(replace(work, checkpointing=True))
    assert estimated == pytest.approx(measured + one_layer, rel=0.3)


def test_the_facts_estimate_grows_with_what_is_trained(recipe_of):
    """By sixteen bytes a value of the adapter, and with the batch; NF4 and checkpointing save."""
    small, large = (describe(recipe_of(lora_r=rank)) for rank in (8, 16))
    assert large.memory - small.memory == 16 * (large.spec.size - small.spec.size)
    assert describe(recipe_of(micro_batch_size=16)).memory > small.memory
    assert describe(recipe_of(gradient_checkpointing=True)).memory < small.memory
    assert describe(recipe_of(adapter="qlora")).memory < small.memory
