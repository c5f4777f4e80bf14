"""What rounding the updates costs in end loss, and saves in bytes, on the demo's four sites."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from fedlora.runtime.reports import format as fmt
from simulations.studies.dots import SEEDS, Panel, draw, seeds_and_mean
from simulations.studies.page import Page, shown, signed
from simulations.studies.trials import Result, Trial, by_variant, differences, study_recipe

Known = Mapping[str, Sequence[Result]]

_DESCRIPTION = """\
The demo: the embedded model on four sites with other packages of Python's standard library each,
LoRA of rank 8, 8 rounds of 12 steps; with the default method (product with momentum 0.5), and with
`average` without momentum, whose factors keep their meaning from round to round. There, what `nf4`
loses in a round is added in the next (error feedback); with the default method it is lost.

Loss is in nats per token over the held-out rows of all sites after the last round. ± is the
standard deviation over seeds. The difference is the mean, seed by seed, from the same method with
fp32. Bytes are of one client's update, header included."""
_LIMIT = 0.001
"""Largest mean difference from fp32, relative to its loss."""
_DEFAULT = ("federation.method=product",)
_PLAIN = ("federation.method=average", "federation.server_momentum=0")
VARIANTS = {
    "fp32": (*_DEFAULT, "wire.codec=fp32"),
    "bf16": (*_DEFAULT, "wire.codec=bf16"),
    "int8": (*_DEFAULT, "wire.codec=int8"),
    "nf4": (*_DEFAULT, "wire.codec=nf4"),
    "fp32 (average)": (*_PLAIN, "wire.codec=fp32"),
    "nf4 (average)": (*_PLAIN, "wire.codec=nf4"),
}


def trials(seeds: Iterable[int], *, setting: Sequence[str] = ()) -> list[Trial]:
    """Return a trial for each variant and seed."""
    return [
        Trial(variant=name, recipe=study_recipe(*setting, *sets, f"seed={seed}"))
        for seed in seeds
        for name, sets in VARIANTS.items()
    ]


def page(results: Sequence[Result]) -> Page:
    """Return what the study shows."""
    known = by_variant(results)
    relative = {name: _relative(name, known) for name in known if name != _exact(name)}
    percent = {name: [100 * value for value in values] for name, values in relative.items()}
    return Page(
        title="Codecs of updates",
        setting=_DESCRIPTION,
        header=("codec", "held-out loss", "against fp32", "up", "of fp32", "within 0.1 %"),
        rows=[_row(name, known) for name in known],
        findings=tuple(_findings(relative)),
        figure=draw(
            list(percent),
            [
                Panel(
                    label="end loss against fp32, %",
                    marks=seeds_and_mean(percent),
                    band=(-100 * _LIMIT, 100 * _LIMIT),
                )
            ],
            styles=SEEDS,
        ),
        caption="End loss against fp32 by codec; the band is what the mean must keep to.",
    )


def _exact(name: str) -> str:
    """Return the counterpart that rounds nothing."""
    return "fp32 (average)" if name.endswith("(average)") else "fp32"


def _relative(name: str, known: Known) -> list[float]:
    exact = known[_exact(name)]
    return [
        difference / fmean(result.loss for result in exact)
        for difference in differences(known[name], exact)
    ]


def _row(name: str, known: Known) -> tuple[str, ...]:
    losses, exact = [result.loss for result in known[name]], known[_exact(name)]
    up, most = (fmean(r.outcome.bytes_up for r in of) for of in (known[name], exact))
    row = (name, shown(losses, ".4f"))
    if name == _exact(name):
        return (*row, "", fmt.size(up), "", "")
    relative = _relative(name, known)
    verdict = "yes" if abs(fmean(relative)) <= _LIMIT else "NO"
    against = shown([100 * value for value in relative], "+.3f") + " %"
    return (*row, against, fmt.size(up), f"{up / most:.3f}", verdict)


def _findings(relative: Mapping[str, Sequence[float]]) -> Iterator[str]:
    means = {name: fmean(values) for name, values in relative.items()}
    within = [name for name, mean in means.items() if abs(mean) <= _LIMIT]
    outside = [f"{n} ({signed(100 * m, '+.2f')} %)" for n, m in means.items() if n not in within]
    yield (
        f"Within 0.1 % of fp32's end loss: {', '.join(within) or 'none'}. "
        f"Not within: {', '.join(outside) or 'none'}."
    )
    values = [abs(value) for several in relative.values() for value in several]
    yield (
        f"Single seeds differ from fp32 by up to {100 * max(values):.2f} % in either direction: "
        "a difference far below that is chance, not rounding."
    )
