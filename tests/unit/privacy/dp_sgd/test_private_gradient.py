"""Private steps in the one local loop."""

import math
from dataclasses import replace

import pytest
import torch

from fedlora.adapter import AdapterState
from fedlora.errors import BudgetError, RunError
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.adaptive_clip import AdaptiveClip
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.mechanism import KeyStream
from fedlora.training.base_model import BaseModel
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss
from tests.tiny_models import private_sum, random_tokens, row_major, tiny_base, tiny_recipe

CHARGE = Charge.of_steps(4, sensitivity=0.7, noise_multiplier=0.9, sampling_rate=0.1)
EXPECTED = 6.0
RECIPE = tiny_recipe(learning_rate=1e-2, lr_scheduler="constant")


class Scaled:
    """A source whose noise has another deviation than it says."""

    def __init__(self, factor):
        self.factor, self.source = factor, KeyStream.reproducible("scaled")

    def gaussian(self, count):
        return self.source.gaussian(count) * self.factor


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a tiny Llama in float32."""
    return tiny_base(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def received(base):
    """Return the adapter that training begins with."""
    return base.adapter()


def mechanism(source="0", adaptive=None, **keys):
    source = KeyStream.reproducible(source) if isinstance(source, str) else source
    charge = replace(CHARGE, **keys)
    return DpSgd(charge, expected_examples=EXPECTED, source=source, adaptive=adaptive)


def train(base, received, steps, gradient, **keys):
    keys = {"part": base.spec, "recipe": RECIPE, "objective": sft_loss} | keys
    times = {"first_step": 0, "total_steps": 100, "seed": "secret"}
    return train_local(base, received, steps, gradient=gradient, **times, **keys)


def test_the_gradient_is_the_clipped_sum_and_noise_over_the_expected_examples(base, received):
    """From several micro-batches; the number that came is in no denominator."""
    base.load_adapter(received)
    batches = [random_tokens(12, 5, seed=1), random_tokens(9, 16, 4, seed=2)]
    private = mechanism("a stream")
    with base.training(base.spec) as trained:
        total = private_sum(base, batches, trained, clip_norm=0.7)
        with private.gradient(trained) as gradients:
            for batch in batches:
                gradients.add(sft_loss(base, batch))
            assert gradients.finish()
            came = torch.cat([tensor.grad.flatten() for tensor in trained.tensors])
            trained.tensors[0][0, 0] += 1
        total.values += 0.9 * 0.7 * KeyStream.reproducible("a stream").gaussian(came.numel())
        expected = row_major(total, trained) / EXPECTED
    torch.testing.assert_close(came, expected.float(), rtol=1e-6, atol=1e-7)
    assert came.dtype == torch.float32


@pytest.mark.parametrize("factors", ["B", "A", "AB"])
def test_private_training_learns(base, received, factors):
    """With little noise the loss falls, over steps of uneven size."""
    lesson = [random_tokens(12, 5, 16, 9), random_tokens(12, 5)]
    private = mechanism(noise_multiplier=1e-3, steps=20)
    part = base.spec.part(factors)
    result = train(base, received, [lesson, lesson[:1]] * 10, private.gradient, part=part)
    assert result.losses[-1] < 0.95 * result.losses[1]
    assert result.examples == 10 * (6 + 4)


def test_a_step_without_examples_is_noise(base, received):
    """It is taken all the same, and nothing tells it from others but a loss that is no number."""
    result = train(base, received, [[], []], mechanism().gradient)
    assert (result.examples, result.tokens) == (0, 0)
    assert all(map(math.isnan, result.losses))
    moved = result.state.minus(received)
    assert float((moved != 0).float().mean()) > 0.99


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_do_not_stop_training(base, received, value):
    """An example must not be able to: whether a run ends would tell that it was there."""

    def broken(base, batch):
        scale = torch.ones(len(batch.labels))
        scale[1] = value
        return sft_loss(base, batch) * scale

    batch = random_tokens(12, 5, 16)
    result = train(base, received, [[batch]] * 2, mechanism().gradient, objective=broken)
    assert result.state.is_finite()


def test_only_the_part_moves(base, received):
    """What is not trained stays bit for bit, noise or not."""
    part = base.spec.part("B", rank=3)
    result = train(base, received, [[random_tokens(12, 5)]], mechanism().gradient, part=part)
    before = dict(received.factors())
    for tensor, values in result.state.factors():
        moved = values != before[tensor]
        assert int(moved.sum()) == int(moved[:, :3].sum())
        assert bool(moved[:, :3].all()) == (tensor.factor == "B")


def test_no_more_steps_than_charged(base, received):
    """The fifth of four stops the training, also over several calls."""
    batch, private = random_tokens(12, 5), mechanism()
    train(base, received, [[batch]] * 3, private.gradient)
    with pytest.raises(BudgetError, match="All 4 private steps"):
        train(base, received, [[batch]] * 2, private.gradient)


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1])
def test_noise_of_another_deviation_stops_training(base, received, factor):
    """Before the optimiser sees the gradient; the test before any data finds it, too."""
    private = mechanism(Scaled(factor))
    with pytest.raises(RunError, match="noise in a step"):
        train(base, received, [[random_tokens(12, 5)]], private.gradient)
    with pytest.raises(RunError, match="noise in a step"):
        mechanism(Scaled(factor)).self_test()


def test_noise_that_does_not_reach_the_gradient_stops_training(base, received, monkeypatch):
    """It is looked for in what the optimiser gets, not in what was drawn."""
    monkeypatch.setattr(torch.Tensor, "add_", lambda self, other: self.copy_(other))
    with pytest.raises(RunError, match="noise in a step"):
        mechanism().self_test()


def test_the_self_test_looks_at_the_whole_step(monkeypatch):
    """It finds what goes wrong after the noise was added and looked at."""
    privatised = DpSgd.privatised
    monkeypatch.setattr(DpSgd, "privatised", lambda self, total: 0.95 * privatised(self, total))
    with pytest.raises(RunError, match="noise in a step"):
        mechanism().self_test()


def test_the_self_test_uses_up_no_step(base, received):
    """All that were charged can be taken after it, from the bound that was charged."""
    private = mechanism(adaptive=AdaptiveClip(quantile=0.5, learning_rate=0.2, count_deviation=2))
    private.self_test()
    assert private.clip_norm == 0.7
    train(base, received, [[]] * 4, private.gradient)


def test_an_adapter_that_does_not_move_stops_training(base, received):
    """As when the optimiser has other tensors than the model."""
    train(base, received, [], mechanism().gradient)  # no step, no movement
    with (
        base.training(base.spec) as trained,
        pytest.raises(RunError, match="has not moved"),
        mechanism().gradient(trained) as gradients,
    ):
        gradients.finish()


def test_without_noise_nothing_is_drawn(base, received):
    """The multiplier zero clips alone, which promises nothing: a baseline for studies."""
    private = mechanism(noise_multiplier=0.0)
    private.self_test()
    first = train(base, received, [[random_tokens(12, 5)]], private.gradient)
    private = mechanism("other", noise_multiplier=0.0)
    second = train(base, received, [[random_tokens(12, 5)]], private.gradient)
    assert torch.equal(first.state.values, second.state.values)


def test_the_bound_adapts_and_the_noise_with_it(base, received):
    """It falls while no example is clipped; the self-test follows, and noise is the larger one."""
    rule = AdaptiveClip(quantile=0.1, learning_rate=0.5, count_deviation=0.6)
    private = mechanism(adaptive=rule, sensitivity=1e4)
    base.load_adapter(received)
    with base.training(base.spec) as trained, private.gradient(trained) as gradients:
        bounds = []
        for _ in range(4):
            gradients.add(sft_loss(base, random_tokens(12, 5, 16, 9)))
            gradients.finish()
            bounds.append(private.clip_norm)
        trained.tensors[0][0, 0] += 1
    stream = KeyStream.reproducible("0")
    stream.gaussian(base.spec.size)
    counts = {"unclipped": 4, "examples": 4, "expected": EXPECTED}
    first = rule.next_bound(1e4, **counts, noise=float(stream.gaussian(1)))
    assert bounds[0] == pytest.approx(first)
    assert sorted(bounds, reverse=True) == bounds
    assert bounds[-1] < 0.6 * 1e4
    values = torch.cat([tensor.grad.flatten() for tensor in trained.tensors])
    deviation = rule.vector_multiplier(0.9) * bounds[-2] / EXPECTED
    assert float(values.std()) == pytest.approx(deviation, rel=0.02)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unit": "client"}, "charge is for client under add-remove"),
        ({"adjacency": "replace-one"}, "charge is for example under replace-one"),
        ({"sensitivity": 0.0}, "positive clip_norm"),
        ({"sensitivity": math.nan}, "positive clip_norm"),
        ({"noise_multiplier": -1.0}, "noise multiplier of at least zero"),
        ({"noise_multiplier": math.inf}, "noise multiplier of at least zero"),
    ],
)
def test_a_charge_for_something_else_is_refused(keys, message):
    """What is drawn must be what was charged."""
    with pytest.raises(RunError, match=message):
        mechanism(**keys)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_the_embedded_model_trains_in_bfloat16_with_checkpointing_and_dropout(kind):
    """What a site uses together works together."""
    keys = {"gradient_checkpointing": True, "lora_dropout": 0.1, "bf16": True, "adapter": kind}
    base = BaseModel.load(tiny_recipe(**keys))
    private = mechanism(noise_multiplier=1e-3, steps=6)
    start = AdapterState.initial(base.spec, seed=0)
    losses = train(base, start, [[random_tokens(12, 5, 16)]] * 6, private.gradient).losses
    assert losses[-1] < 0.9 * losses[0]
