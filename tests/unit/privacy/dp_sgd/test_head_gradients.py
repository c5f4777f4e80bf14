"""Per-example gradients of heads: weights and biases, given a vector an example, or tokens."""

import pytest
import torch
from torch import nn

from fedlora.data.examples import Labelled
from fedlora.data.labels import LabelledBatch, collate_texts, tokenize_text
from fedlora.errors import BaseModelError, RunError
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.per_sample import per_sample_gradients
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.mechanism import KeyStream
from fedlora.training.base_model import BaseModel
from fedlora.training.local import train_local
from fedlora.training.objectives import label_loss
from tests.classifiers import ARCHITECTURES, LABELS, classifier_recipe, texts, write_base
from tests.gradient_oracles import clipped_sum
from tests.tiny_models import private_sum, row_major


def loaded(folder, **keys) -> BaseModel:
    """Return a classifier with an adapter of random values on it."""
    base = BaseModel.load(classifier_recipe(base_model=str(folder), **keys))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return base


def rows_of(base: BaseModel, count: int = 6):
    return [
        tokenize_text(Labelled(*row), base.tokenizer, labels=LABELS, sequence_len=16)
        for row in texts(count)
    ]


def batch_of(base: BaseModel, rows, *, length: int | None = None) -> LabelledBatch:
    return collate_texts(rows, pad_token_id=base.pad_token_id, length=length)


def alone(base: BaseModel, rows, trained) -> list[torch.Tensor]:
    """Return each example's flat gradient from autograd, alone in its batch and without padding."""
    gradients = []
    for row in rows:
        label_loss(base, batch_of(base, [row])).sum().backward()
        trained.take_gradients()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in trained.tensors]))
        for tensor in trained.tensors:
            tensor.grad = None
    return gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("kinds", [("A", "B", "head"), ("B", "head"), ("head",)])
def test_the_clipped_sum_is_that_of_examples_alone(tmp_path, architecture, kind, kinds):
    """A, B, weights and biases of the head are clipped together, whatever the padding."""
    base = loaded(write_base(tmp_path / "base", architecture), adapter=kind)
    rows, part = rows_of(base), base.spec.part(kinds)
    with base.training(part) as trained:
        gradients = alone(base, rows, trained)
        norms = [float(gradient.norm()) for gradient in gradients]
        bound = sum(norms) / len(norms)
        micro_batches = [batch_of(base, rows[:4], length=20), batch_of(base, rows[4:])]
        total = private_sum(base, micro_batches, trained, clip_norm=bound, objective=label_loss)
        came = row_major(total, trained)
    expected = clipped_sum(gradients, bound)
    assert float((came - expected).norm() / expected.norm()) < 1e-6
    assert 0 < total.unclipped == sum(norm <= bound for norm in norms) < total.examples == 6


def test_a_private_step_moves_the_head(tmp_path):
    """With all of its noise, and only by what the optimiser steps: the self-checks agree."""
    base, recipe = loaded(write_base(tmp_path / "base")), classifier_recipe(learning_rate=1e-2)
    charge = Charge.of_steps(2, sensitivity=1.0, noise_multiplier=1.0, sampling_rate=0.5)
    mechanism = DpSgd(charge, expected_examples=4, source=KeyStream.reproducible("test"))
    received = base.adapter()
    result = train_local(
        base,
        received,
        [[batch_of(base, rows_of(base))], []],
        gradient=mechanism.gradient,
        part=base.spec.part(("B", "head")),
        recipe=recipe,
        first_step=0,
        total_steps=2,
        seed="secret",
        objective=label_loss,
    )
    before = dict(received.factors())
    for tensor, values in result.state.factors():
        assert torch.equal(values, before[tensor]) == (tensor.factor == "A")


class Part:
    """Some parameters of any model, as a private step trains them."""

    def __init__(self, model, parameters, *, pooled=()):
        self.model, self.parameters, self.pooled = model, list(parameters), pooled
        self.tensors = [parameter.detach() for parameter in self.parameters]


def test_vectors_are_for_heads_alone():
    """Elsewhere they may be tokens of several examples, as many as there are examples."""
    model = nn.Linear(3, 2)
    with (
        per_sample_gradients(Part(model, model.parameters())),
        pytest.raises(BaseModelError, match="whose they are is not known"),
    ):
        model(torch.zeros(4, 3))


def test_vectors_that_are_not_one_an_example_are_refused():
    """Where their number shows it."""
    model = nn.Linear(3, 2)
    part = Part(model, model.parameters(), pooled={0, 1})
    with per_sample_gradients(part) as per_sample:
        model(torch.ones(4, 3, requires_grad=True)).sum().backward()
        with pytest.raises(RunError, match="one value for each row"):
            per_sample.take(2)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_module_is_trained_whole_or_not_at_all(trained):
    """Its bias would else be trained by nobody, or its weight."""
    model = nn.Linear(3, 2)
    part = Part(model, [getattr(model, trained)], pooled={0})
    with (
        pytest.raises(BaseModelError, match="or with one that is trained too"),
        per_sample_gradients(part),
    ):
        pass


def test_tokens_of_a_head_are_summed_for_its_bias():
    """A decoder's head may be given all tokens, of which one is taken."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    inputs, part = torch.randn(4, 5, 3), Part(model, model.parameters(), pooled={0, 1})
    with per_sample_gradients(part) as per_sample:
        model(inputs.requires_grad_(True)).square().sum(dim=(1, 2)).sum().backward()
        weights, biases = per_sample.take(4)
    for place in range(4):
        model.zero_grad()
        model(inputs[place]).square().sum().backward()
        torch.testing.assert_close(weights[place], model.weight.grad)
        torch.testing.assert_close(biases[place], model.bias.grad)
