"""Bases that are held in 4 or 8 bits."""

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from fedlora.adapter import AdapterState
from fedlora.training.base_model import BaseModel
from fedlora.training.objectives import sft_loss

HELD = {"nf4": {"adapter": "qlora"}, "int8": {"load_in_8bit": True}}
CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


def gradients(base: BaseModel, batch: object) -> torch.Tensor:
    base.model.train()
    sft_loss(base, batch).sum().backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in base.parameters])
    base.model.zero_grad()
    return flat.cpu()


def weights_of(base: BaseModel) -> dict[str, torch.Tensor]:
    """Return the dequantised weights by the paths of their modules."""
    found = {}
    for path, module in base.model.get_base_model().named_modules():
        if isinstance(module, Linear4bit):
            found[path] = dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, Linear8bitLt):
            weight, scale = module.weight.data, module.weight.SCB
            codes = module.state.CB if weight is None or module.state.CB is not None else weight
            scale = module.state.SCB if module.state.SCB is not None else scale
            found[path] = codes.float() * scale[:, None] / 127
    return found


def dequantised(base: BaseModel, recipe_of: Callable[..., object], **keys: object) -> BaseModel:
    """Return the same base with its weights as they come out of the quantisation."""
    dense = BaseModel.load(recipe_of(**keys))
    for path, weight in weights_of(base).items():
        dense.model.get_base_model().get_submodule(path).weight.data.copy_(weight)
    return dense


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", HELD)
def test_gradients_survive_an_evaluation(recipe_of, adapter, batch, kind, bf16, device):
    """They are the same, to the bit on a CPU: an evaluation leaves the weights as they are."""
    base = BaseModel.load(recipe_of(**HELD[kind], bf16=bf16, device=device))
    base.load_adapter(adapter)
    before = gradients(base, batch)
    base.model.eval()
    with torch.no_grad():
        sft_loss(base, batch)
    after = gradients(base, batch)
    if device == "cpu":
        assert torch.equal(after, before)
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("kind", HELD)
def test_gradients_are_those_of_the_dequantised_base(recipe_of, adapter, batch, kind):
    """On a CPU, where both kinds are computed with the weights that they stand for."""
    base = BaseModel.load(recipe_of(**HELD[kind]))
    dense = dequantised(base, recipe_of)
    assert len(weights_of(base)) == len(adapter.spec.tensors) / 2
    for each in (base, dense):
        each.load_adapter(adapter)
    torch.testing.assert_close(gradients(base, batch), gradients(dense, batch))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", HELD)
def test_gradients_are_near_those_of_the_dequantised_base_on_cuda(recipe_of, adapter, batch, kind):
    """Within 2 % in NF4 and 10 % in 8 bits, which round what goes into a module, too."""
    base = BaseModel.load(recipe_of(**HELD[kind], device="cuda"))
    dense = dequantised(base, recipe_of, device="cuda")
    for each in (base, dense):
        each.load_adapter(adapter)
    ours, theirs = gradients(base, batch), gradients(dense, batch)
    assert (ours - theirs).norm() <= {"nf4": 0.02, "int8": 0.1}[kind] * theirs.norm()


@torch.no_grad()
@pytest.mark.parametrize(("kind", "most"), [("nf4", 0.3), ("int8", 0.03)])
def test_the_quantised_base_is_near_the_base(recipe_of, base, batch, kind, most):
    """Its logits differ, by 12 % in 4 bits and 1 % in 8: it is quantised, and not to nothing."""
    held = BaseModel.load(recipe_of(**HELD[kind]))
    logits = []
    for each in (held, base):
        each.load_adapter(AdapterState.initial(each.spec, seed=0))
        each.model.eval()
        logits.append(each.logits(batch.input_ids, keep=batch.labels >= 0))
    error = (logits[0] - logits[1]).norm() / logits[1].norm()
    assert most / 10 < error < most


@pytest.mark.parametrize("kind", HELD)
def test_every_linear_module_but_the_head_is_quantised(recipe_of, kind):
    """Those that carry the adapter; embeddings, norms and the head keep their dtype."""
    base = BaseModel.load(recipe_of(**HELD[kind]))
    assert set(weights_of(base)) == {f"{tensor.module}.base_layer" for tensor in base.spec.tensors}
