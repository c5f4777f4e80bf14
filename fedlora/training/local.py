"""The one local loop: what a site does with an adapter that it received."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch.nn.utils import clip_grad_norm_

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.errors import RunError
from fedlora.recipe import Recipe
from fedlora.training.base_model import BaseModel
from fedlora.training.batch import Batch, supervised
from fedlora.training.objectives import Objective, sft_loss
from fedlora.training.schedule import learning_rate_factor


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalResult:
    """A trained adapter and what the training saw."""

    state: AdapterState
    losses: Sequence[float]
    """Mean loss per example of each optimiser step."""
    examples: int
    tokens: int
    """Supervised tokens."""


def train_local(
    base: BaseModel,
    received: AdapterState,
    batches: Iterable[Batch],
    *,
    part: AdapterSpec,
    recipe: Recipe,
    first_step: int,
    total_steps: int,
    seed: str,
    objective: Objective = sft_loss,
    on_step: Callable[[int, float], None] | None = None,
) -> LocalResult:
    """Train ``received`` on ``batches`` and return the result; the base keeps it as its adapter.

    A step's gradient is the sum of its examples' gradients over ``recipe.batch_size``, the
    *expected* number of examples, clipped to ``recipe.max_grad_norm``. AdamW starts afresh.

    Guarantees:
        - Equal arguments give a bit-equal result on one CPU machine, dropout included.
        - The global random state is left as it was.
        - What is not in ``part`` stays as it was received, and works in the model all the same.

    Args:
        base: the warm base model.
        received: the adapter to begin with.
        batches: micro-batches; ``recipe.gradient_accumulation_steps`` of them make a step.
        part: the factors and leading components that are trained.
        recipe: learning rate, schedule, weight decay, clipping.
        first_step: steps of the whole training that come before this call.
        total_steps: steps of the whole training.
        seed: what dropout is drawn from.
        objective: gives the loss of each example.
        on_step: called with the number of steps taken here and the loss of the last.

    Raises:
        AdapterError: ``received`` does not fit the base.
        RunError: a loss or a gradient is not finite.
    """
    base.load_adapter(received)
    losses: list[float] = []
    examples = tokens = 0
    with base.training(part) as trained, _seeded(seed, base.device):
        # torch's fused step takes a view for contiguous memory and would change other values
        fused = all(tensor.is_contiguous() for tensor in trained.tensors)
        optimizer = torch.optim.AdamW(
            trained.tensors, weight_decay=recipe.weight_decay, fused=fused
        )
        for step, micro_batches in enumerate(_steps(batches, recipe), start=first_step):
            count = sum(len(batch.labels) for batch in micro_batches)
            loss = _backward(base, micro_batches, objective=objective, recipe=recipe) / count
            trained.take_gradients()
            norm = clip_grad_norm_(trained.tensors, recipe.max_grad_norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
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
            tokens += sum(int(supervised(batch).sum()) for batch in micro_batches)
            if on_step is not None:
                on_step(len(losses), loss)
    return LocalResult(state=base.adapter(), losses=losses, examples=examples, tokens=tokens)


def _steps(batches: Iterable[Batch], recipe: Recipe) -> Iterator[list[Batch]]:
    """Yield the micro-batches of one optimiser step after another; the last may have fewer."""
    iterator = iter(batches)
    while step := list(islice(iterator, recipe.gradient_accumulation_steps)):
        yield step


def _backward(
    base: BaseModel, micro_batches: Iterable[Batch], *, objective: Objective, recipe: Recipe
) -> float:
    """Add the step's gradient to the parameters; return the sum of its examples' losses."""
    total = 0.0
    for batch in micro_batches:
        loss = objective(base, batch).sum()
        (loss / recipe.batch_size).backward()
        total += loss.item()
    return total


def _diverged(step: int, loss: float, recipe: Recipe) -> RunError:
    return RunError(
        f"Training diverged at step {step + 1}: the loss is {loss:g}, or its gradient is not "
        f"finite. Lower learning_rate (now {recipe.learning_rate:g}) or set bf16: false, then "
        "run again."
    )


@contextmanager
def _seeded(seed: str, device: torch.device) -> Iterator[None]:
    """Draw from ``seed`` inside the block and leave the global random state as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8]))
        yield
