"""A private optimiser step against a plain one: the same micro-batches, the same optimiser.

On a random Llama of about 30 M parameters: a logical batch of 64 rows of 64 tokens in micro-batches
of 16, in the processor's own precision, with secure noise. ``B`` is what ``freeze-a`` trains; in
``AB`` both factors are. Beside it, Opacus's hooks on the same rows, clipped and noised as its
``DPOptimizer`` does; the embedded model, whose steps are short; and the peak of memory above the
loaded model, each variant in a process of its own.
"""

import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from opacus import GradSampleModule  # type: ignore[import-untyped]  # it ships no types
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (  # type: ignore[import-untyped]
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import (  # type: ignore[import-untyped]
    DPOptimizer,
    DPOptimizerFastGradientClipping,
)
from opacus.utils.fast_gradient_clipping_utils import (  # type: ignore[import-untyped]
    DPTensorFastGradientClipping,
)
from torch import Tensor

from fedlora.adapter import AdapterSpec, AdapterState
from fedlora.data.batches import Batch
from fedlora.privacy.charge import Charge
from fedlora.privacy.dp_sgd.private_gradient import DpSgd
from fedlora.privacy.mechanism import KeyStream
from fedlora.recipe import Recipe
from fedlora.sections import EMBEDDED
from fedlora.training.base_model import BaseModel
from fedlora.training.gradient import GradientOf, plain_gradient
from fedlora.training.local import train_local
from fedlora.training.objectives import sft_loss
from simulations.benchmarks.measure import Bar, compare, interleaved, once, report
from simulations.benchmarks.peak import elsewhere, peak_of
from simulations.benchmarks.rounds import random_llama

ROWS, MICRO, TOKENS, SHORT = 64, 16, 256, 64
LIMITS = {
    "B: private / plain": 1.05,
    "AB: private / plain": 1.05,
    "B: memory, private / plain": 1.05,
    "AB: memory, private / plain": 1.05,
}
_STEPS = 10**6
_OPACUS: dict[str, Any] = {
    "noise_multiplier": 1.0,
    "max_grad_norm": 1.0,
    "expected_batch_size": ROWS,
    "loss_reduction": "sum",
}

# Opacus's hooks on a module whose inputs need no gradients.
warnings.filterwarnings("ignore", message="Full backward hook is firing")


@dataclass
class _Timed:
    """Draws noise, and counts the seconds that takes."""

    stream: KeyStream = field(default_factory=KeyStream.secure)
    seconds: float = 0.0

    def gaussian(self, count: int) -> Tensor:
        started = time.perf_counter()
        values = self.stream.gaussian(count)
        self.seconds += time.perf_counter() - started
        return values

    def poisson_sample(self, count: int, rate: float) -> list[int]:
        return self.stream.poisson_sample(count, rate)


def run(n: int) -> None:
    """Measure both models and print the result."""
    with tempfile.TemporaryDirectory() as folder:
        large = random_llama(Path(folder) / "llama-30m")
        bars = [
            *_time(large, n=n),
            *_time(large, n=n, tokens=SHORT, prefix="short rows, "),
            *_time(EMBEDDED, n=n, prefix="embedded model, "),
        ]
        bars += [_memory(large, factors) for factors in ("B", "AB")]
    report("private_step", bars, LIMITS)


def _time(base_model: str, *, n: int, tokens: int = TOKENS, prefix: str = "") -> list[Bar]:
    recipe = _recipe(base_model)
    base, bars, noise = BaseModel.load(recipe), [], _Timed()
    start, batches = base.adapter(), _batches(tokens)
    for factors in ("B", "AB"):
        part = base.spec.part(factors)
        step = partial(_step, base, start, batches, part=part, recipe=recipe)
        mechanism = _mechanism(noise)
        variants: dict[str, Callable[[], None]] = {
            "plain": partial(step, gradient=plain_gradient(recipe)),
            "private": partial(step, gradient=mechanism.gradient),
            "Opacus hooks": partial(_opacus_step, base, start, batches, part=part),
            "Opacus ghost clipping": partial(_ghost_step, base, start, batches, part=part),
        }
        noise.seconds = 0.0
        seconds = interleaved(variants, n=n)
        share = noise.seconds / (n + 1) / (sum(seconds["private"]) / n)
        print(f"{prefix}{factors}: noise is {share:.1%} of a private step, {part.size:,} values")
        for name in ("private", "Opacus hooks", "Opacus ghost clipping"):
            bar = f"{prefix}{factors}: {name} / plain"
            bars.append(compare(bar, seconds, ours=name, peer="plain", at_most=LIMITS.get(bar)))
    return bars


def _step(
    base: BaseModel,
    start: AdapterState,
    batches: list[Batch],
    *,
    part: AdapterSpec,
    recipe: Recipe,
    gradient: GradientOf,
) -> None:
    train_local(
        base,
        start,
        [batches],
        gradient=gradient,
        part=part,
        recipe=recipe,
        first_step=0,
        total_steps=_STEPS,
        seed="step",
    )


def _opacus_step(
    base: BaseModel, start: AdapterState, batches: list[Batch], *, part: AdapterSpec
) -> None:
    """The same with Opacus's hooks, which make the gradient of each example."""
    base.load_adapter(start)
    with ExitStack() as stack:
        stack.enter_context(base.training(part))
        hooked = GradSampleModule(base.model, loss_reduction="sum", strict=False)
        stack.callback(hooked.remove_hooks)
        optimizer = DPOptimizer(_adamw(base), **_OPACUS)
        for index, batch in enumerate(batches):
            optimizer.signal_skip_step(do_skip=index < len(batches) - 1)
            sft_loss(base, batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        for parameter in optimizer.params:
            delattr(parameter, "grad_sample")


def _ghost_step(
    base: BaseModel, start: AdapterState, batches: list[Batch], *, part: AdapterSpec
) -> None:
    """The same with Opacus's ghost clipping: a pass for the norms, and a pass for the sum."""
    base.load_adapter(start)
    with ExitStack() as stack:
        stack.enter_context(base.training(part))
        hooked = GradSampleModuleFastGradientClipping(
            base.model, loss_reduction="sum", strict=False, max_grad_norm=_OPACUS["max_grad_norm"]
        )
        stack.callback(hooked.remove_hooks)
        optimizer = DPOptimizerFastGradientClipping(_adamw(base), **_OPACUS)
        for index, batch in enumerate(batches):
            optimizer.signal_skip_step(do_skip=index < len(batches) - 1)
            hooked.enable_hooks()
            losses = sft_loss(base, batch)
            DPTensorFastGradientClipping(hooked, optimizer, losses, "sum").backward()
            optimizer.step()
            optimizer.zero_grad()


def _adamw(base: BaseModel) -> torch.optim.AdamW:
    trained = [parameter for parameter in base.model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, fused=True)


def _memory(base_model: str, factors: str) -> Bar:
    ours, peer = (elsewhere(_peak, base_model, factors, way) for way in ("private", "plain"))
    name = f"{factors}: memory, private / plain"
    return once(name, ours=ours, peer=peer, unit="MB", at_most=LIMITS[name])


def _peak(base_model: str, factors: str, way: str) -> float:
    recipe = _recipe(base_model)
    base = BaseModel.load(recipe)
    start, batches = base.adapter(), _batches(TOKENS)
    gradient = plain_gradient(recipe) if way == "plain" else _mechanism(_Timed()).gradient
    step = partial(_step, base, start, batches, recipe=recipe, gradient=gradient)
    return peak_of(partial(step, part=base.spec.part(factors)))


def _mechanism(source: _Timed) -> DpSgd:
    charge = Charge.of_steps(_STEPS, sensitivity=1.0, noise_multiplier=1.0, sampling_rate=0.1)
    return DpSgd(charge, expected_examples=ROWS, source=source)


def _recipe(base_model: str) -> Recipe:
    keys = {"base_model": base_model, "micro_batch_size": MICRO, "sequence_len": TOKENS}
    steps = {"gradient_accumulation_steps": ROWS // MICRO}
    fixed = {"datasets": [{"path": "standard-library"}], "privacy": {"unit": "none"}}
    return Recipe.model_validate({**keys, **steps, **fixed})


def _batches(tokens: int) -> list[Batch]:
    """Return rows of random tokens, all supervised."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(5, 2000, (ROWS, tokens), generator=generator)
    return [
        Batch(input_ids=part, attention_mask=torch.ones_like(part), labels=part)
        for part in rows.split(MICRO)
    ]
