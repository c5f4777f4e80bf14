"""Per-example gradients and their clipped sum, against one example after another."""

from functools import partial

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt
from opacus import GradSampleModule
from torch import nn

from fedlora.adapter import AdapterState
from fedlora.errors import BaseModelError, RunError
from fedlora.privacy.dp_sgd.per_sample import per_sample_gradients
from fedlora.training.objectives import sft_loss
from tests.gradient_oracles import alone, clipped_sum, one_loss_at_a_time
from tests.tiny_models import (
    ARCHITECTURES,
    Tokens,
    dpo_of,
    private_sum,
    random_tokens,
    row_major,
    tiny_base,
)

CLIP_NORM = 1.2
"""Between the norms of the examples: some are clipped, some are not."""


def relative_error(came, expected):
    return float((came - expected).norm() / expected.norm())


class Part:
    """Some parameters of any model, as a private step trains them."""

    def __init__(self, model, parameters):
        self.model, self.parameters = model, list(parameters)
        self.tensors = [parameter.detach() for parameter in self.parameters]
        self.pooled = ()


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a tiny Llama in float32."""
    return tiny_base(tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=["AB", "A", "B", "AB of rank 3", "B of rank 3"])
def part(request, base):
    """Return a part of the adapter that a round may train."""
    factors, _, rank = request.param.partition(" of rank ")
    return base.spec.part(factors, rank=int(rank or base.spec.rank))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_the_clipped_sum_is_that_of_examples_alone(tmp_path, architecture, kind):
    """In float32 over a base in float32 or NF4, whatever the padding."""
    base, batch = tiny_base(tmp_path, architecture, adapter=kind), random_tokens(12, 5, 16, 9)
    with base.training(base.spec) as trained:
        gradients = alone(base, batch, trained)
        norms = [float(gradient.norm()) for gradient in gradients]
        bound = sum(norms) / len(norms)
        total = private_sum(base, [batch], trained, clip_norm=bound)
        came = row_major(total, trained)
    assert relative_error(came, clipped_sum(gradients, bound)) < 1e-6
    assert 0 < total.unclipped == sum(norm <= bound for norm in norms) < total.examples == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "qlora"])
@pytest.mark.parametrize("reference", ["base", "adapter"])
def test_the_clipped_sum_is_that_of_pairs_alone(tmp_path, architecture, kind, reference):
    """Two rows of a pair are one example: their gradients are added up and clipped together."""
    base = tiny_base(tmp_path, architecture, adapter=kind)
    batch = random_tokens(12, 5, 16, 9, 7, 7, 4, 11)
    other = AdapterState(spec=base.spec, values=base.adapter().values.flip(0))
    objective = dpo_of(other if reference == "adapter" else None)
    with base.training(base.spec) as trained:
        gradients = alone(base, batch, trained, objective=objective, rows=2)
        norms = [float(gradient.norm()) for gradient in gradients]
        bound = sum(norms) / len(norms)
        total = private_sum(base, [batch], trained, clip_norm=bound, objective=objective, rows=2)
        came = row_major(total, trained)
    assert relative_error(came, clipped_sum(gradients, bound)) < 1e-6
    assert 0 < total.unclipped == sum(norm <= bound for norm in norms) < total.examples == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_computing_in_bfloat16_costs_the_sum_no_accuracy(tmp_path, architecture, kind):
    """It is that of one loss after another to 1e-6; alone, an example has other roundings."""
    base = tiny_base(tmp_path, architecture, adapter=kind, bf16=True)
    batch = random_tokens(12, 5, 16, 9)
    losses = partial(sft_loss, base, batch)
    with base.training(base.spec) as trained:
        total = row_major(private_sum(base, [batch], trained, clip_norm=CLIP_NORM), trained)
        each = one_loss_at_a_time(losses, trained, count=4, dtype=torch.bfloat16)
        by_themselves = alone(base, batch, trained)
    assert relative_error(total, clipped_sum(each, CLIP_NORM)) < 1e-6
    assert relative_error(total, clipped_sum(by_themselves, CLIP_NORM)) < 0.02


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("bf16", [True, False])
def test_checkpointing_changes_no_bit(tmp_path, reentrant, bf16):
    """Layers that are computed again, in either way, record their gradients once."""
    base, batch = tiny_base(tmp_path, adapter="qlora", bf16=bf16), random_tokens(12, 5, 16, 9)
    with base.training(base.spec) as trained:
        expected = private_sum(base, [batch], trained, clip_norm=CLIP_NORM).values
        network = base.model.base_model.model
        network.activation_checkpointing_enable({"use_reentrant": reentrant})
        network.enable_input_require_grads()
        came = private_sum(base, [batch], trained, clip_norm=CLIP_NORM).values
    assert torch.equal(came, expected)


def test_only_the_trained_part_counts(base, part):
    """Norms and sums are over the trained factors and leading components alone."""
    batch = random_tokens(12, 5, 16, 9)
    with base.training(part) as trained:
        gradients = alone(base, batch, trained)
        total = private_sum(base, [batch], trained, clip_norm=CLIP_NORM / 2)
        came = row_major(total, trained)
    assert relative_error(came, clipped_sum(gradients, CLIP_NORM / 2)) < 1e-6


def test_micro_batches_add_up(base):
    """However a batch is cut, the sum is the same."""
    batch = random_tokens(12, 5, 16, 9)
    pieces = [
        Tokens(batch.input_ids[rows], batch.labels[rows])
        for rows in (slice(0, 1), slice(1, 3), slice(3, 4))
    ]
    with base.training(base.spec) as trained:
        whole = private_sum(base, [batch], trained, clip_norm=CLIP_NORM).values
        parts = private_sum(base, pieces, trained, clip_norm=CLIP_NORM).values
    assert relative_error(parts, whole) < 1e-6


def test_dropout_is_that_of_the_model(tmp_path):
    """With equal masks the sum is that of one loss after another, and no mask is drawn twice."""
    base, batch = tiny_base(tmp_path, lora_dropout=0.3), random_tokens(12, 5, 16, 9)

    def losses(base=base, batch=batch):
        torch.manual_seed(5)
        return sft_loss(base, batch)

    with torch.random.fork_rng(), base.training(base.spec) as trained:
        each = one_loss_at_a_time(losses, trained, count=4, dtype=torch.float32)
        total = private_sum(base, [batch], trained, clip_norm=CLIP_NORM, objective=losses)
        came = row_major(total, trained)
    assert relative_error(came, clipped_sum(each, CLIP_NORM)) < 1e-6


def test_an_example_without_supervised_tokens_adds_nothing(base):
    """Alone in its batch it is a step's whole sum: zero."""
    batch = random_tokens(6, 6)
    batch.labels.fill_(-100)
    with base.training(base.spec) as trained:
        total = private_sum(base, [batch], trained, clip_norm=CLIP_NORM)
    assert not total.values.any()
    assert total.examples == 2


def test_the_model_is_as_before(base):
    """Outputs are the same bits inside the block; after it autograd works again."""
    batch = random_tokens(12, 5)
    with base.training(base.spec) as trained:
        expected = sft_loss(base, batch)
        with per_sample_gradients(trained):
            inside = sft_loss(base, batch)
            inside.sum().backward()
            assert all(parameter.grad is None for parameter in trained.parameters)
        sft_loss(base, batch).sum().backward()
        assert all(parameter.grad is not None for parameter in trained.parameters)
    assert torch.equal(inside, expected)
    assert not any("forward" in vars(module) for module in base.model.modules())


def test_autocast_applies_to_float32_inputs():
    """As to any linear module: same outputs, and the gradient is that of the rounded inputs."""
    torch.manual_seed(0)
    model, inputs = linear(5, 3), torch.randn(4, 6, 5, requires_grad=True)
    with (
        per_sample_gradients(Part(model, model.parameters())) as per_sample,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        outputs = model(inputs)
        outputs.float().square().sum().backward()
        (came,) = per_sample.take(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(outputs, model(inputs))
    back = (2 * outputs.detach().float()).bfloat16().float()
    expected = torch.einsum("bto,bti->boi", back, inputs.detach().bfloat16().float())
    torch.testing.assert_close(came, expected)
    assert inputs.grad.dtype == torch.float32


def test_gradients_are_those_of_opacus():
    """An independent implementation finds the same for linear modules over sequences."""
    torch.manual_seed(0)
    model = nn.Sequential(linear(5, 3), nn.Tanh(), linear(3, 4))
    inputs = torch.randn(6, 7, 5, requires_grad=True)
    theirs = GradSampleModule(model, loss_reduction="sum")
    theirs(inputs).square().sum().backward()
    expected = [parameter.grad_sample.clone() for parameter in model.parameters()]
    theirs.to_standard_module()
    model.zero_grad()
    with per_sample_gradients(Part(model, model.parameters())) as per_sample:
        model(inputs).square().sum().backward()
        came = per_sample.take(6)
    torch.testing.assert_close(came[0], expected[0])
    torch.testing.assert_close(came[1].transpose(1, 2), expected[1])  # it is tall


def test_all_uses_of_an_example_add_up():
    """A module used twice, and an example that goes through the model twice, count as one."""
    torch.manual_seed(0)
    model = linear(4, 4)
    chosen, rejected = torch.randn(3, 5, 4), torch.randn(3, 6, 4)

    def losses(rows):
        twice = model(model(chosen[rows]).tanh())
        return twice.sum((1, 2)) - model(rejected[rows]).square().sum((1, 2))

    with per_sample_gradients(Part(model, model.parameters())) as per_sample:
        losses(slice(None)).sum().backward()
        (came,) = per_sample.take(3)
    for row in range(3):
        (expected,) = torch.autograd.grad(losses(slice(row, row + 1)).sum(), [model.weight])
        torch.testing.assert_close(came[row], expected)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 3), r"0 is a Linear: .*without bias"),
        (Linear8bitLt(3, 3, bias=False), "0 is a Linear8bitLt"),
        (nn.Embedding(3, 3), "0 is a Embedding"),
    ],
)
def test_other_modules_are_refused(module, message):
    """Nothing but plain linear modules without bias has a known per-example gradient."""
    model = nn.Sequential(module)
    with (
        pytest.raises(BaseModelError, match=message),
        per_sample_gradients(Part(model, [module.weight])),
    ):
        pass


def test_a_factor_of_no_module_is_refused():
    """Training it would leave the model as it is."""
    with (
        pytest.raises(BaseModelError, match="belongs to no module"),
        per_sample_gradients(Part(linear(3, 3), linear(3, 3).parameters())),
    ):
        pass


def test_tokens_without_a_batch_are_refused():
    """In a mixture of experts, tokens of several examples come as one list."""
    model = nn.Sequential(linear(3, 3))
    with (
        per_sample_gradients(Part(model, model.parameters())),
        pytest.raises(BaseModelError, match="0 gets tokens without a dimension for the batch"),
    ):
        model(torch.zeros(8, 3))


def test_rows_that_are_no_examples_are_refused():
    """A module that sees another number of rows than there are losses mixes examples."""
    model = linear(3, 3)
    with per_sample_gradients(Part(model, model.parameters())) as per_sample:
        model(torch.ones(4, 5, 3)).sum().backward()
        with pytest.raises(RunError, match="one value for each row"):
            per_sample.take(2)
        losses = model(torch.ones(2, 5, 3)).sum() + model(torch.ones(4, 5, 3)).sum()
        with pytest.raises(RunError, match="one value for each row"):
            losses.backward()


def test_rows_that_are_no_pairs_are_refused():
    """An odd number of rows, and as many losses as rows; a pair is what was asked for, no more."""
    model = linear(3, 3)
    with per_sample_gradients(Part(model, model.parameters()), rows=2) as per_sample:
        with pytest.raises(RunError, match="for each pair of rows"):
            model(torch.ones(5, 4, 3)).sum().backward()
        for examples in (1, 4):
            model(torch.ones(4, 5, 3)).sum().backward()
            with pytest.raises(RunError, match="for each pair of rows"):
                per_sample.take(examples)
        model(torch.ones(4, 5, 3)).sum().backward()
        (came,) = per_sample.take(2)
    assert came.tolist() == [[[10.0] * 3] * 3] * 2


def test_a_factor_that_is_used_otherwise_is_refused():
    """What reaches it outside of its module, or not at all, is not known per example."""
    model = nn.Sequential(linear(3, 3), linear(3, 3))
    with per_sample_gradients(Part(model, model.parameters())) as per_sample:
        model[0](torch.ones(2, 5, 3)).sum().backward()
        with pytest.raises(RunError, match="took no part"):
            per_sample.take(2)
        (model(torch.ones(2, 5, 3)) @ model[0].weight).sum().backward()
        with pytest.raises(RunError, match="outside its linear module"):
            per_sample.take(2)
