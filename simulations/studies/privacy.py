"""What example-level privacy costs in end loss, by budget and method, on the demo's four sites."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from fedlora.methods import Method
from simulations.studies.dots import SEEDS, Panel, draw, seeds_and_mean
from simulations.studies.page import Page, shown
from simulations.studies.trials import Result, Trial, by_variant, study_recipe

Known = Mapping[str, Sequence[Result]]

_DESCRIPTION = """\
The demo: the embedded model on four sites of some 800 rows each, with other packages of Python's
standard library; LoRA of rank 8, 4 rounds of 8 steps of 64 records on average, clipped to 0.5, at a
learning rate of 3e-3. Every site declares 800 records; δ is 1e-5. `freeze-a` trains B alone,
`alternate` B and A in turn, `product` both. Noise is secure, so that a seed does not repeat a run.
Without noise, the same steps are plain: no clipping of single records, no Poisson sampling.

Loss is in nats per token over the held-out rows of all sites after the last round, measured by the
study itself: the rows are public. Under privacy each row decides alone whether it is held out, so
these are other rows, on which the base is at 3.61 rather than 3.55 (seed 0): the gain is over the
base on the same rows, and relative to that of the method without noise. ± is the standard deviation
over seeds."""
_SETTING = (
    "federation.rounds=4",
    "federation.local_steps=8",
    "gradient_accumulation_steps=4",
    "learning_rate=3e-3",
    "max_grad_norm=0.5",
)
METHODS: Sequence[Method] = ("freeze-a", "alternate", "product")
EPSILONS = (8, 3, 1)


def trials(seeds: Iterable[int], *, setting: Sequence[str] = _SETTING) -> list[Trial]:
    """Return a trial for each method, budget and seed."""
    return [
        Trial(
            variant=_name(method, epsilon),
            recipe=study_recipe(
                *setting, f"federation.method={method}", *_privacy(epsilon), f"seed={seed}"
            ),
        )
        for seed in seeds
        for method in METHODS
        for epsilon in (None, *EPSILONS)
    ]


def page(results: Sequence[Result]) -> Page:
    """Return what the study shows."""
    known = by_variant(results)
    losses = {name: [result.loss for result in of] for name, of in known.items()}
    return Page(
        title="What privacy costs",
        setting=_DESCRIPTION,
        header=("method: budget", "held-out loss", "below the base", "of the gain without noise"),
        rows=[_row(name, known) for name in known],
        findings=tuple(_findings(known)),
        figure=draw(
            list(losses),
            [Panel(label="held-out loss, nats per token", marks=seeds_and_mean(losses))],
            styles=SEEDS,
        ),
        caption="End loss by method and budget.",
    )


def _findings(known: Known) -> Iterator[str]:
    for epsilon in EPSILONS:
        gains = {method: _gain(known[_name(method, epsilon)]) for method in METHODS}
        best = max(gains, key=lambda method: gains[method])
        below = [method for method in METHODS if gains[method] > 0]
        yield (
            f"At ε = {epsilon}, {best} is best: {gains[best]:.3f} nats per token below the base. "
            f"Below the base: {', '.join(below) or 'none'}."
        )


def _row(name: str, known: Known) -> tuple[str, ...]:
    exact = known[_name(name.partition(":")[0], None)]
    losses, gain = [result.loss for result in known[name]], _gain(known[name])
    share = f"{gain / _gain(exact):.0%}".replace("-", "\N{MINUS SIGN}")
    return name, shown(losses, ".3f"), f"{gain:+.3f}".replace("-", "\N{MINUS SIGN}"), share


def _gain(results: Sequence[Result]) -> float:
    return fmean(result.outcome.base - result.loss for result in results)


def _privacy(epsilon: int | None) -> Sequence[str]:
    if epsilon is None:
        return ("privacy={unit: none}",)
    return (
        f"privacy={{unit: example, epsilon: {epsilon}, delta: 1e-5, records: 800}}",
        "federation.evaluate_every=0",
    )


def _name(method: str, epsilon: int | None) -> str:
    return f"{method}: {f'ε = {epsilon}' if epsilon else 'no noise'}"
