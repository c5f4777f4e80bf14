"""The one local loop: what a site does with an adapter that it received."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import DivergedError
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch
from fedlora.training.drift import Drift
from fedlora.training.gradient import GradientOf
from fedlora.training.objectives import Objective, sft_loss
from fedlora.training.optimizer import Optimizer
from fedlora.training.schedule import learning_rate


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalResult:
    """A trained adapter and what the training saw."""

    state: AdapterState
    losses: Sequence[float]
    """Mean loss per example of each optimiser step; not a number for one without examples."""
    examples: int
    tokens: int
    """Supervised tokens."""


def train_local(
    base: BaseModel,
    received: AdapterState,
    steps: Iterable[Sequence[Batch]],
    *,
    gradient: GradientOf,
    part: AdapterSpec,
    recipe: Recipe,
    first_step: int,
    total_steps: int,
    seed: str,
    objective: Objective = sft_loss,
    proximal: float = 0.0,
    correction: AdapterState | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> LocalResult:
    """Train ``received`` for some steps and return the result; the base keeps it as its adapter.

    The optimiser starts afresh.

    Guarantees:
        - Equal arguments give a bit-equal result on one CPU machine, dropout included.
        - The global random state is left as it was.
        - What is not in ``part`` stays as it was received, and works in the model all the same.

    Args:
        base: the warm base model.
        received: the adapter to begin with.
        steps: for each optimiser step its micro-batches; none is a step without examples.
        gradient: makes each step's gradient: ``plain_gradient(recipe)``, or a private one.
        part: the factors and leading components that are trained.
        recipe: optimiser, learning rate, schedule, weight decay.
        first_step: steps of the whole training that come before this call.
        total_steps: steps of the whole training.
        seed: what dropout is drawn from. In a private run it must be a secret: to whom it is known,
            an example changes the gradients of those behind it in its batch by shifting their
            dropout.
        objective: gives the loss of each example.
        proximal: weight of FedProx's term (``Drift``).
        correction: of ``part``: what is taken from each step, times its learning rate.
        on_step: called with the number of steps taken here and the loss of the last.

    Raises:
        AdapterError: ``received`` does not fit the base.
        BaseModelError: the optimiser is not to be had on the base's device.
        DivergedError: a step has no finite gradient, or the losses exploded.
    """
    base.load_adapter(received)
    losses: list[float] = []
    examples = tokens = 0
    with (
        base.training(part) as trained,
        _seeded(seed, base.device),
        gradient(trained) as gradients,
    ):
        optimizer = Optimizer(trained, recipe)
        drift = Drift(trained, proximal=proximal, correction=correction)
        for step, micro_batches in enumerate(steps, start=first_step):
            total, count = 0.0, 0
            for batch in micro_batches:
                of_each = objective(base, batch)
                gradients.add(of_each)
                total += of_each.detach().sum().item()
                count += len(of_each)
                tokens += batch.tokens
            loss = total / count if count else math.nan
            if not gradients.finish():
                raise _diverged(step, [*losses, loss], recipe)
            rate = learning_rate(recipe, step, total_steps=total_steps)
            drift.pull()
            optimizer.step(rate)
            drift.correct(rate)
            losses.append(loss)
            examples += count
            if on_step is not None:
                on_step(len(losses), loss)
    return LocalResult(state=base.adapter(), losses=losses, examples=examples, tokens=tokens)


def _diverged(step: int, losses: Sequence[float], recipe: Recipe) -> DivergedError:
    return DivergedError(
        f"Training diverged at step {step + 1}: the loss is {losses[-1]:g}, after {losses[0]:g} at "
        "the first step of the round, or its gradient is not finite. Nothing was sent. Lower "
        f"learning_rate (now {recipe.learning_rate:g}) or set bf16: false, then run again."
    )


@contextmanager
def _seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside the block and leave the global random state as it was."""
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else ()  # layers lie on any
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
        yield
