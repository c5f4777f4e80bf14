"""All methods of aggregation, with and without server momentum, on eight sites."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from fedlora.cli.simulate import DEMO
from fedlora.data.standard_library import explained_functions
from fedlora.methods import METHODS
from fedlora.recipe import read_recipe
from fedlora.runtime.reports import format as fmt
from fedlora.sections import STANDARD_LIBRARY, Dataset
from simulations.studies.dots import SEEDS, Panel, draw, seeds_and_mean
from simulations.studies.page import Page, shown, signed
from simulations.studies.trials import Result, Trial, by_variant, differences, study_recipe

Known = Mapping[str, Sequence[Result]]

_WITHOUT, _WITH = "", " + momentum"
DEFAULT = f"product{_WITH}"
_AMONG_BEST = 3
_DESCRIPTION = """\
The embedded model on eight sites: each of the demo's four families of packages is dealt out to two
sites, of nearly equal size except for `gui`, most of which is one package. LoRA of rank 8 on all
linear modules, batches of 16, the demo's learning rate, 6 rounds of 6 steps at all sites,
increments as fp32. Seeds differ in initial A, split and batches, and are the same for all variants.

Loss is in nats per token over the held-out rows of all sites after the last round. ± is the
standard deviation over seeds. *Against default* is the mean difference, seed by seed. *Tail* is the
mean over rounds of what the cut of the rank dropped, relative to the round's change. Bytes are of
one client and round. Momentum is 0.5; adam has the recipe's defaults, β₁ of 0.5 and a learning rate
of 0.01.

`share-a` makes an adapter for each site rather than one for all: each site is measured with the
shared A and its own B."""
_SETTING = ("federation.rounds=6", "federation.local_steps=6", "wire.codec=fp32")


def variants() -> dict[str, tuple[str, ...]]:
    """Return what each variant sets."""
    methods: dict[str, tuple[str, ...]]
    methods = {name: (f"federation.method={name}",) for name in METHODS}
    methods["product, publish_rank 16"] = (*methods["product"], "federation.publish_rank=16")
    with_momentum = {
        name + end: (*sets, f"federation.server_momentum={momentum}")
        for name, sets in methods.items()
        for momentum, end in ((0.0, _WITHOUT), (0.5, _WITH))
    }
    adam = (*methods["freeze-a"], "federation.server_optimizer=adam")
    return with_momentum | {"freeze-a, adam": adam}


def trials(seeds: Iterable[int], *, setting: Sequence[str] = _SETTING) -> list[Trial]:
    """Return a trial for each variant and seed."""
    data = sites()
    return [
        Trial(variant=name, recipe=study_recipe(*setting, *sets, f"seed={seed}", datasets=data))
        for seed in seeds
        for name, sets in variants().items()
    ]


def sites() -> list[dict[str, Any]]:
    """Return the demo's four sites as eight."""
    return list(chain.from_iterable(map(_halved, read_recipe(DEMO).datasets)))


def _halved(dataset: Dataset) -> list[dict[str, Any]]:
    """Deal a site's packages out to two sites, the largest first, each to the smaller site."""
    counts = {name: sum(1 for _ in explained_functions([name])) for name in dataset.packages}
    halves: tuple[list[str], list[str]] = ([], [])
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        min(halves, key=lambda half: sum(map(counts.__getitem__, half))).append(name)
    return [
        {"path": STANDARD_LIBRARY, "site": f"{dataset.site}-{number}", "packages": sorted(half)}
        for number, half in enumerate(halves, start=1)
    ]


def page(results: Sequence[Result]) -> Page:
    """Return what the study shows."""
    known = by_variant(results)
    against = {name: differences(known[name], known[DEFAULT]) for name in known}
    order = sorted(known, key=lambda name: fmean(against[name]))
    return Page(
        title="Methods of aggregation",
        setting=_DESCRIPTION,
        header=("method", "held-out loss", "against default", "up", "down", "tail"),
        rows=[_row(name, known) for name in order],
        findings=tuple(_findings(known, order)),
        figure=draw(
            order,
            [Panel(label="nats per token", marks=seeds_and_mean(against))],
            styles=SEEDS,
            bold=DEFAULT,
        ),
        caption="Held-out loss above the default's by method, seed by seed; left is better.",
    )


def _row(name: str, known: Known) -> tuple[str, ...]:
    outcomes = [result.outcome for result in known[name]]
    tail = fmean(outcome.tail for outcome in outcomes)
    is_default = name == DEFAULT
    against = differences(known[name], known[DEFAULT])
    return (
        f"**{name}** (default)" if is_default else name,
        shown([outcome.loss for outcome in outcomes], ".3f"),
        "" if is_default else shown(against, "+.3f"),
        fmt.size(fmean(outcome.bytes_up for outcome in outcomes)),
        fmt.size(fmean(outcome.bytes_down for outcome in outcomes)),
        fmt.percent(tail) if tail else "",
    )


def _findings(known: Known, order: Sequence[str]) -> Iterator[str]:
    methods = list(dict.fromkeys(_method_of(name) for name in order))
    rank = methods.index(_method_of(DEFAULT)) + 1
    verdict = "is among" if rank <= _AMONG_BEST else "is NOT among"
    loss = shown([result.loss for result in known[DEFAULT]], ".3f")
    base = shown([result.outcome.base for result in known[DEFAULT]], ".3f")
    yield (
        f"The default method, {methods[rank - 1]}, {verdict} the best three: number {rank} of "
        f"{len(methods)}, each at its best. As it is set by default it is number "
        f"{order.index(DEFAULT) + 1} of {len(order)} variants, at {loss}. The base without an "
        f"adapter is at {base}."
    )
    best = order[0]
    if best != DEFAULT:
        lead = differences(known[DEFAULT], known[best])
        yield (
            f"The best is {best}, {shown(lead, '.3f')} below the default, in "
            f"{sum(gain > 0 for gain in lead)} of {fmt.counted(len(lead), 'seed')}."
        )
    names = [name.removesuffix(_WITH) for name in known if name.endswith(_WITH)]
    gains = {n: fmean(differences(known[n + _WITHOUT], known[n + _WITH])) for n in names}
    low, high = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
    yield (
        f"Momentum 0.5 lowers the loss of {sum(gain > 0 for gain in gains.values())} of "
        f"{len(gains)} methods, by {signed(fmean(gains.values()), '.3f')} on average: from "
        f"{signed(gains[low], '.3f')} for {low} to {signed(gains[high], '.3f')} for {high}."
    )
    without, with_it = (
        shown(differences(known[f"average{end}"], known[f"product{end}"]), ".3f")
        for end in (_WITHOUT, _WITH)
    )
    yield (
        f"Averaging products instead of factors lowers the loss by {without} without momentum, "
        f"and by {with_it} with it."
    )


def _method_of(variant: str) -> str:
    return variant.partition(" ")[0].removesuffix(",")
