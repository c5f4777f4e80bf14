"""The optimisers that a recipe can name."""

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import BaseModelError
from fedlora.training.base_model import BaseModel, bnb_adamw, require_optimizer
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.optimizer import Optimizer

KEYS = {
    "adamw_torch": {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6},
    "adamw_8bit": {"adam_beta1": 0.8},
    "sgd": {"sgd_momentum": 0.9},
}
"""Those that every device has, each with keys of its own."""


def reference(tensors, recipe):
    """Return what torch, or bitsandbytes, makes of whole tensors."""
    decay, betas = recipe.weight_decay, (recipe.adam_beta1, recipe.adam_beta2)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(tensors, momentum=recipe.sgd_momentum, weight_decay=decay)
    if recipe.optimizer == "adamw_torch":
        return torch.optim.AdamW(tensors, betas=betas, eps=recipe.adam_epsilon, weight_decay=decay)
    return bnb_adamw(tensors, name="adamw_8bit", betas=betas, weight_decay=decay)


@pytest.mark.parametrize("rank", [8, 3])
@pytest.mark.parametrize("name", KEYS)
def test_the_part_is_stepped_as_by_the_optimiser_of_that_name(
    base, adapter, recipe_of, generator, name, rank
):
    """With the recipe's keys, on contiguous factors and on views; nothing beside the part moves."""
    recipe = recipe_of(optimizer=name, weight_decay=0.1, **KEYS[name])
    base.load_adapter(adapter)
    with base.training(base.spec.part(rank=rank)) as trained:
        wanted = [view.clone(memory_format=torch.contiguous_format) for view in trained.tensors]
        theirs, ours = reference(wanted, recipe), Optimizer(trained, recipe)
        for rate in (0.1, 0.05):
            for tensor, view in zip(wanted, trained.tensors, strict=True):
                tensor.grad = torch.randn(view.shape, generator=generator)
                view.grad = tensor.grad.t().contiguous().t()  # as a kernel may leave it
            theirs.param_groups[0]["lr"] = rate
            theirs.step()
            ours.step(rate)
        assert all(view.grad is None for view in trained.tensors)
        for tensor, view in zip(wanted, trained.tensors, strict=True):
            torch.testing.assert_close(view, tensor, rtol=1e-5, atol=1e-6)
    outside = adapter.values.clone()
    for tensor, start in base.spec.offsets():
        values = outside[start : start + tensor.size].view(tensor.shape)
        (values[:rank] if tensor.factor == "A" else values[:, :rank]).fill_(float("nan"))
    kept = ~outside.isnan()
    assert torch.equal(base.adapter().values[kept], adapter.values[kept])
    assert int(kept.sum()) == base.spec.size - base.spec.part(rank=rank).size


def test_eight_bits_are_close_to_thirty_two(base, batch, recipe_of):
    """The adapter of four steps differs by little of what they moved it."""
    start = AdapterState.initial(base.spec, seed=0)
    moves = [
        moved(base, start, [batch] * 4, recipe_of(optimizer=name))
        for name in ("adamw_torch", "adamw_8bit")
    ]
    assert 0 < (moves[0] - moves[1]).norm() < 0.05 * moves[0].norm()


def moved(base, start, batches, recipe, *, rank=8, **keys):
    result = train_local(
        base,
        start,
        [[batch] for batch in batches],
        gradient=plain_gradient(recipe),
        part=base.spec.part(rank=rank),
        recipe=recipe,
        first_step=0,
        total_steps=8,
        seed="0/site-1/0",
        **keys,
    )
    return result.state.minus(start)


@pytest.mark.parametrize("rank", [8, 3])
@pytest.mark.parametrize("keys", [{}, {"proximal": 0.5}, {"correction": True}], ids=str)
@pytest.mark.parametrize("name", KEYS)
def test_equal_trainings_give_equal_bits(base, batch, recipe_of, name, keys, rank):
    """With each optimiser and each term against drift, dropout included."""
    recipe = recipe_of(optimizer=name, **KEYS[name])
    start = AdapterState.initial(base.spec, seed=0)
    if "correction" in keys:
        spec = base.spec.part(rank=rank)
        values = torch.randn(spec.size, generator=torch.Generator().manual_seed(3))
        keys = {"correction": AdapterState(spec=spec, values=values)}
    first, second = (moved(base, start, [batch] * 3, recipe, rank=rank, **keys) for _ in range(2))
    assert torch.equal(first, second)
    assert first.norm() > 0


@pytest.mark.parametrize(
    ("name", "device", "instead"),
    [
        ("paged_adamw_32bit", "cpu", "adamw_torch"),
        ("paged_adamw_8bit", "cpu", "adamw_8bit"),
        ("adamw_8bit", "mps", "adamw_torch"),
    ],
)
def test_what_a_device_does_not_have_is_refused(name, device, instead):
    """It would fall back, or fail in the first step; the error says what to take."""
    with pytest.raises(BaseModelError, match=rf"optimizer: {name} .*(?i:take) {instead}\."):
        require_optimizer(name, device)
    require_optimizer(name, "cuda")


def test_a_paged_optimiser_is_refused_where_it_would_step(base, batch, recipe_of):
    """Also of a site that plans nothing beforehand."""
    start = AdapterState.initial(base.spec, seed=0)
    with pytest.raises(BaseModelError, match="does not page"):
        moved(base, start, [batch], recipe_of(optimizer="paged_adamw_8bit"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit", "sgd"])
def test_each_optimiser_trains_on_cuda(batch, recipe_of, name):
    """The loss falls."""
    recipe = recipe_of(optimizer=name, device="cuda", learning_rate=1.0 if name == "sgd" else 1e-2)
    base = BaseModel.load(recipe)
    start = AdapterState.initial(base.spec, seed=0)
    losses = []
    moved(base, start, [batch] * 6, recipe, on_step=lambda _, loss: losses.append(loss))
    assert losses[-1] < losses[0]
