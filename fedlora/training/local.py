"""The one local loop: what a site does with an adapter that it received."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import RunError
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch
from fedlora.training.gradient import GradientOf
from fedlora.training.objectives import Objective, sft_loss
from fedlora.training.schedule import learning_rate_factor


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
    on_step: Callable[[int, float], None] | None = None,
) -> LocalResult:
    """Train ``received`` for some steps and return the result; the base keeps it as its adapter.

    AdamW starts afresh.

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
        recipe: learning rate, schedule, weight decay.
        first_step: steps of the whole training that come before this call.
        total_steps: steps of the whole training.
        seed: what dropout is drawn from. In a private run it must be a secret: to whom it is known,
            an example changes the gradients of those behind it in its batch by shifting their
            dropout.
        objective: gives the loss of each example.
        on_step: called with the number of steps taken here and the loss of the last.

    Raises:
        AdapterError: ``received`` does not fit the base.
        RunError: a step has no finite gradient.
    """
    base.load_adapter(received)
    losses: list[float] = []
    examples = tokens = 0
    with (
        base.training(part) as trained,
        _seeded(seed, base.device),
        gradient(trained) as gradients,
    ):
        # torch's fused step takes a view for contiguous memory and would change other values
        fused = all(tensor.is_contiguous() for tensor in trained.tensors)
        optimizer = torch.optim.AdamW(
            trained.tensors, weight_decay=recipe.weight_decay, fused=fused
        )
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
                raise _diverged(step, loss, recipe)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * learning_rate_factor(
                step,
                total_steps=total_steps,
                warmup_ratio=recipe.warmup_ratio,
                scheduler=recipe.lr_scheduler,
            )
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            examples += count
            if on_step is not None:
                on_step(len(losses), loss)
    return LocalResult(state=base.adapter(), losses=losses, examples=examples, tokens=tokens)


def _diverged(step: int, loss: float, recipe: Recipe) -> RunError:
    return RunError(
        f"Training diverged at step {step + 1}: the loss is {loss:g}, or its gradient is not "
        f"finite. Lower learning_rate (now {recipe.learning_rate:g}) or set bf16: false, then "
        "run again."
    )


@contextmanager
def _seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside the block and leave the global random state as it was."""
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else ()  # layers lie on any
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
        yield
