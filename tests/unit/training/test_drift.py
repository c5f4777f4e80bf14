"""FedProx and SCAFFOLD in the local loop."""

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.training.gradient import plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss


def train(base, received, batches, recipe, **keys):
    result = train_local(
        base,
        received,
        [[batch] for batch in batches],
        gradient=plain_gradient(recipe),
        part=keys.pop("part", base.spec),
        recipe=recipe,
        first_step=0,
        total_steps=8,
        seed="s",
        **keys,
    )
    return result.state


def by_hand(base, received, batches, recipe, *, proximal=0.0, correction=0.0):
    """Return what plain gradient descent makes of it, term by term."""
    values = received.values.clone()
    for batch in batches:
        base.load_adapter(AdapterState(spec=base.spec, values=values))
        base.model.train()
        sft_loss(base, batch).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in base.parameters]) / recipe.batch_size
        base.model.zero_grad()
        gradient *= min(1.0, recipe.max_grad_norm / (float(gradient.norm()) + 1e-6))
        gradient += proximal * (values - received.values)
        values = values - recipe.learning_rate * (gradient + correction)
    return values


@pytest.mark.parametrize("max_norm", [1e3, 0.5])
def test_fedprox_adds_its_term_to_each_clipped_gradient(base, adapter, batch, recipe_of, max_norm):
    """Four steps equal gradient descent written out, whether the gradient is clipped or not."""
    recipe = recipe_of(
        optimizer="sgd", learning_rate=0.1, lr_scheduler="constant", max_grad_norm=max_norm
    )
    expected = by_hand(base, adapter, [batch] * 4, recipe, proximal=2.0)
    without = by_hand(base, adapter, [batch] * 4, recipe)
    found = train(base, adapter, [batch] * 4, recipe, proximal=2.0)
    moved = (without - adapter.values).norm()
    assert (found.values - expected).norm() < 1e-4 * moved
    assert (found.values - without).norm() > 0.05 * moved
    assert found.minus(adapter).norm() < moved


def test_without_a_weight_there_is_no_term(base, adapter, batch, recipe_of):
    """Not a bit of it."""
    recipe = recipe_of()
    plain = train(base, adapter, [batch] * 2, recipe)
    assert torch.equal(plain.values, train(base, adapter, [batch] * 2, recipe, proximal=0.0).values)


def test_a_correction_is_taken_from_each_step(base, adapter, batch, recipe_of, generator):
    """With plain SGD it is a term of the gradient, which clipping leaves alone."""
    recipe = recipe_of(optimizer="sgd", learning_rate=0.5, lr_scheduler="constant")
    correction = 0.01 * torch.randn(base.spec.size, generator=generator)
    expected = by_hand(base, adapter, [batch] * 4, recipe, correction=correction)
    state = AdapterState(spec=base.spec, values=correction)
    found = train(base, adapter, [batch] * 4, recipe, correction=state)
    assert (found.values - expected).norm() < 1e-4 * (expected - adapter.values).norm()


@pytest.mark.parametrize("keys", [{"proximal": 3.0}, {"correction": True}], ids=str)
def test_only_the_part_is_held(base, adapter, batch, recipe_of, keys):
    """What is not trained stays bit for bit, though it is not contiguous with what is."""
    part = base.spec.part("B", rank=3)
    if "correction" in keys:
        keys = {"correction": AdapterState(spec=part, values=torch.full((part.size,), 3.0))}
    found = train(base, adapter, [batch] * 2, recipe_of(), part=part, **keys)
    before = dict(adapter.factors())
    for tensor, values in found.factors():
        moved = values != before[tensor]
        assert not moved[:, 3:].any() if tensor.factor == "B" else not moved.any()
        assert tensor.factor == "A" or moved[:, :3].all()
