"""The one local loop."""

import math
from dataclasses import replace

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError, RunError
from fedlora.training.base_model import BaseModel
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss
from tests.tiny_models import random_tokens


def train(base, received, steps, recipe, **keys):
    defaults = {"part": base.spec, "first_step": 0, "total_steps": 8, "seed": "0/site-1/0"}
    keys = {"gradient": plain_gradient(recipe)} | defaults | keys
    return train_local(base, received, steps, recipe=recipe, **keys)


def test_training_lowers_the_loss_and_reports_what_it_saw(base, batch, recipe_of):
    """Six steps on one batch: falling losses, examples and supervised tokens counted, progress."""
    seen = []
    result = train(
        base,
        AdapterState.initial(base.spec, seed=0),
        [[batch]] * 6,
        recipe_of(micro_batch_size=4),
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert (result.examples, result.tokens) == (24, 6 * int((batch.labels != -100).sum()))
    assert seen == list(enumerate(result.losses, start=1))
    assert torch.equal(result.state.values, base.adapter().values)


@pytest.mark.parametrize(("scale", "max_norm"), [(1e-7, 1.0), (1.0, 1e-7)])
def test_a_step_is_adamw_on_the_mean_clipped_gradient(
    base, adapter, batch, recipe_of, scale, max_norm
):
    """It equals torch's AdamW on the gradient over the *expected* batch, scaled by hand.

    Gradients are tiny, because Adam's first step does not depend on the scale of larger ones.
    """
    recipe = recipe_of(micro_batch_size=5, weight_decay=0.1, max_grad_norm=max_norm)
    base.load_adapter(adapter)
    base.model.train()
    sft_loss(base, batch).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in base.parameters]) * scale / 5
    base.model.zero_grad()
    expected = torch.nn.Parameter(adapter.values.clone())
    expected.grad = gradient * min(1, max_norm / (float(gradient.norm()) + 1e-6))
    torch.optim.AdamW([expected], lr=1e-2, weight_decay=0.1).step()
    result = train(
        base,
        adapter,
        [[batch]],
        recipe,
        objective=lambda base, batch: scale * sft_loss(base, batch),
    )
    error = float((result.state.values - expected.data).norm())
    assert error < 1e-3 * float((expected.data - adapter.values).norm())


def test_accumulated_micro_batches_equal_one_large_batch(base, adapter, batch, recipe_of):
    """Two halves make the same step as the whole."""
    halves = [type(batch)(batch.input_ids[i : i + 2], batch.labels[i : i + 2]) for i in (0, 2)]
    accumulated = recipe_of(micro_batch_size=2, gradient_accumulation_steps=2)
    whole = train(base, adapter, [[batch]] * 2, recipe_of(micro_batch_size=4))
    parts = train(base, adapter, [halves] * 2, accumulated)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
    assert parts.examples == whole.examples
    moved = whole.state.minus(adapter).norm()
    assert (parts.state.values - whole.state.values).norm() < 0.01 * moved


@pytest.mark.parametrize("checkpointing", [False, True])
def test_equal_arguments_give_equal_bits_with_dropout_too(batch, recipe_of, checkpointing):
    """Only the seed changes the result; the global random state neither matters nor moves."""
    recipe = recipe_of(lora_dropout=0.2, gradient_checkpointing=checkpointing)
    base = BaseModel.load(recipe)
    start = AdapterState.initial(base.spec, seed=0)
    first = train(base, start, [[batch]] * 3, recipe)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    second = train(base, start, [[batch]] * 3, recipe)
    other = train(base, start, [[batch]] * 3, recipe, seed="another")
    assert torch.equal(first.state.values, second.state.values)
    assert first.losses == second.losses
    assert not torch.equal(first.state.values, other.state.values)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_schedule_runs_over_all_rounds(base, adapter, batch, recipe_of):
    """The same steps later in the training move the adapter less; its last step hardly at all."""
    recipe = recipe_of()

    def moved(first_step):
        result = train(base, adapter, [[batch]], recipe, first_step=first_step)
        return float(result.state.minus(adapter).norm())

    assert moved(4) == pytest.approx(moved(0) / 2, rel=1e-3)
    assert 0 < moved(7) < 0.05 * moved(0)


def test_a_loss_that_is_not_finite_ends_training_and_names_the_step(
    base, adapter, batch, recipe_of
):
    """The error counts steps from one over the whole training and says what to change."""
    poisoned = replace(adapter, values=adapter.values * 1e30)
    with pytest.raises(RunError, match=r"diverged at step 6: .*learning_rate"):
        train(base, poisoned, [[batch]], recipe_of(), first_step=5)


def test_a_loss_that_is_not_finite_ends_training_although_its_gradient_is(
    base, adapter, batch, recipe_of
):
    """What a run reports must be numbers."""

    def infinite(base, batch):
        return sft_loss(base, batch) + math.inf

    with pytest.raises(RunError, match="diverged at step 1: the loss is inf"):
        train(base, adapter, [[batch]], recipe_of(), objective=infinite)


def test_an_adapter_for_other_modules_is_refused(base, batch, recipe_of):
    """Its tensors are compared before any is copied."""
    other = BaseModel.load(recipe_of(lora_target_modules=["q_proj"]))
    state = AdapterState.initial(other.spec, seed=0)
    with pytest.raises(AdapterError, match="10 tensors are not the 70"):
        train(base, state, [[batch]], recipe_of())


def test_nf4_trains(base_nf4, batch, recipe_of):
    """The loss over a 4-bit base falls too."""
    start = AdapterState.initial(base_nf4.spec, seed=0)
    losses = train(base_nf4, start, [[batch]] * 6, recipe_of(adapter="qlora")).losses
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_training_on_cuda_lowers_the_loss(batch, recipe_of, kind):
    """The loop works on a GPU in bfloat16, and its result is a value on the CPU."""
    recipe = recipe_of(adapter=kind, device="cuda", bf16="auto", lora_dropout=0.1)
    base = BaseModel.load(recipe)
    result = train(base, AdapterState.initial(base.spec, seed=0), [[batch]] * 6, recipe)
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert result.state.values.device.type == "cpu"


@pytest.mark.parametrize(("factors", "rank"), [("A", 8), ("B", 8), ("AB", 3), ("B", 3)])
def test_only_the_part_is_trained(base, adapter, batch, recipe_of, factors, rank):
    """Other factors and further components stay bit for bit, even under weight decay."""
    part, recipe = base.spec.part(factors, rank=rank), recipe_of(weight_decay=0.1)
    result = train(base, adapter, [[batch]] * 2, recipe, part=part)
    before, after = dict(adapter.factors()), dict(result.state.factors())
    for tensor, values in after.items():
        moved = values != before[tensor]
        leading = moved[:rank] if tensor.factor == "A" else moved[:, :rank]
        assert int(moved.sum()) == int(leading.sum())
        assert bool(leading.all()) == (tensor.factor in factors)


def test_what_is_not_trained_still_works_in_the_model(base, adapter, batch, recipe_of):
    """The frozen components are part of the forward pass: without them the loss is another."""
    part = base.spec.part(rank=3)
    cut = adapter.part(part).part(base.spec)
    whole = train(base, adapter, [[batch]], recipe_of(), part=part)
    assert whole.losses != train(base, cut, [[batch]], recipe_of(), part=part).losses


def test_after_training_a_part_all_can_be_trained_again(base, adapter, batch, recipe_of):
    """Nothing of a part stays behind in the model, not even a gradient."""
    train(base, adapter, [[batch]], recipe_of(), part=base.spec.part("B"))
    assert all(p.requires_grad and p.grad is None for p in base.parameters)


@pytest.mark.parametrize(("micro", "accumulated"), [(2, 4), (4, 2), (1, 8)])
def test_the_gradient_does_not_depend_on_how_a_batch_is_cut(
    base, adapter, recipe_of, micro, accumulated
):
    """Micro-batches of uneven length, each padded to its own longest, sum up to the whole's."""
    batch = random_tokens(12, 5, 16, 9, 7, 30, 4, 11)
    base.load_adapter(adapter)

    def gradient(size, count):
        recipe = recipe_of(micro_batch_size=size, gradient_accumulation_steps=count)
        with base.training(base.spec) as trained, plain_gradient(recipe)(trained) as gradients:
            for start in range(0, 8, size):
                rows = slice(start, start + size)
                longest = int((batch.labels[rows] != -100).nonzero()[:, 1].max()) + 1
                ids, labels = batch.input_ids[rows, :longest], batch.labels[rows, :longest]
                gradients.add(sft_loss(base, type(batch)(ids, labels)))
            assert gradients.finish()
            return torch.cat([view.grad.flatten() for view in trained.tensors])

    whole = gradient(8, 1)
    torch.testing.assert_close(gradient(micro, accumulated), whole, rtol=1e-4, atol=1e-6)
    assert float(whole.norm()) > 0
