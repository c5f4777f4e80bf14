"""What hostile clients do to the first round's change and to the end loss, rule by rule."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from fedlora.cli.simulate import DEMO
from fedlora.methods import Method, Robust
from fedlora.recipe import read_recipe
from fedlora.runtime.reports import format as fmt
from fedlora.runtime.reports.plots.canvas import BLUE, GREEN, ORANGE, RED
from fedlora.sections import STANDARD_LIBRARY
from simulations.studies.dots import Marks, Panel, Style, draw
from simulations.studies.page import Page
from simulations.studies.trials import Result, Trial, study_recipe

_DESCRIPTION = """\
The embedded model and the demo's corpus, dealt out to 15 sites; LoRA of rank 8, 3 rounds of 4
steps, increments as fp32, momentum 0.5, {seeds}. `federation.max_update_norm` is off, so that the
rule alone stands in the way; `federation.attackers` is 0.4. Attackers are the last 3 or 6 sites;
they know what the honest sites send.

*Sign-flip* sends three times the increment, negated. *ALIE* (Baruch et al. 2019, arXiv:1902.06156)
sends, value by value, the honest mean less z standard deviations, z being 0.21 for 3 attackers and
0.76 for 6. *Gauge* sends the attacker's honest product as 100·B and A/100; methods that send B
alone cannot be attacked like that.

A cell is the end loss, in nats per token over the held-out rows of all sites, honest or not, and in
brackets the error: the distance of the first round's change of B·A from what the method without a
rule makes of the honest updates alone, relative to that. Where nobody attacks, the error is what
the rule itself costs."""
CLIENTS = 15
_SETTING = (
    f"federation.sites={CLIENTS}",
    "federation.rounds=3",
    "federation.local_steps=4",
    "wire.codec=fp32",
)
_WATCHED = (
    "federation.attackers=0.4",
    "federation.max_update_norm=1e9",
    "federation.quorum=1",
)
DEFENCES: Sequence[tuple[Method, Robust]] = (
    ("product", "none"),
    ("product", "norm-bound"),
    ("product", "multi-krum"),
    ("product", "geometric-median"),
    ("product", "cosine-filter"),
    ("freeze-a", "none"),
    ("freeze-a", "median"),
    ("freeze-a", "trimmed-mean"),
    ("average", "none"),
)
SCENARIOS = (
    ("none", 0),
    ("sign-flip", 3),
    ("sign-flip", 6),
    ("ALIE", 3),
    ("ALIE", 6),
    ("gauge", 3),
    ("gauge", 6),
)
_STANDS = 0.9
"""Share of an unattacked training's gain that a rule must keep."""
_LEAST = 1e-2
"""Errors below this are drawn there."""
_COLOURS = {"none": BLUE, "sign-flip": RED, "ALIE": ORANGE, "gauge": GREEN}
_MARKERS = {0: "|", 3: "o", 6: "D"}

Scenario = tuple[str, int]
Known = Mapping[tuple[str, Scenario], Sequence[Result]]
"""Results by defence and scenario."""


def trials(seeds: Iterable[int], *, setting: Sequence[str] = _SETTING) -> list[Trial]:
    """Return a trial for each defence, scenario and seed."""
    demo = read_recipe(DEMO).datasets
    data = [{"path": STANDARD_LIBRARY, "packages": dataset.packages} for dataset in demo]
    return [
        Trial(
            variant=_name(method, rule),
            recipe=study_recipe(
                *setting,
                *_WATCHED,
                f"federation.method={method}",
                f"federation.robust={rule}",
                f"seed={seed}",
                datasets=data,
            ),
            attack=attack,
            attackers=attackers,
        )
        for seed in seeds
        for method, rule in DEFENCES
        for attack, attackers in SCENARIOS
        if attack != "gauge" or method != "freeze-a"  # A is not sent: there is nothing to divide
    ]


def page(results: Sequence[Result]) -> Page:
    """Return what the study shows."""
    known: dict[tuple[str, Scenario], list[Result]] = {}
    for result in results:
        scenario = result.trial.attack, result.trial.attackers
        known.setdefault((result.trial.variant, scenario), []).append(result)
    seeds = len({result.trial.recipe.seed for result in results})
    return Page(
        title="Robustness",
        setting=_DESCRIPTION.format(seeds=fmt.counted(seeds, "seed")),
        header=("method: rule", *map(_heading, SCENARIOS)),
        rows=[(name, *(_cell(known, name, s) for s in SCENARIOS)) for name in _names()],
        findings=tuple(_findings(known)),
        figure=draw(
            _names(),
            [
                Panel(
                    label="error of the first change",
                    marks=_marks(known, _error),
                    least=_LEAST,
                ),
                Panel(label="held-out loss, nats per token", marks=_marks(known, _loss)),
            ],
            styles={_heading(scenario): _style(*scenario) for scenario in SCENARIOS},
        ),
        caption=(
            "Error of the first round's change (left; below 0.01 at the edge) and end loss (right) "
            "by defence, attack and number of attackers among 15 clients."
        ),
    )


def _findings(known: Known) -> Iterator[str]:
    first = known[_names()[0], SCENARIOS[0]]
    yield (
        f"The base without an adapter is at {fmean(r.outcome.base for r in first):.3f}. What each "
        "method gains over it when nobody attacks and no rule is used is its gain, which counts as "
        f"kept when {_percent(_STANDS)} of it is left."
    )
    for scenario in SCENARIOS:
        kept = {
            name: _kept(known, name, scenario) for name in _names() if (name, scenario) in known
        }
        stood = [name for name, share in kept.items() if share >= _STANDS]
        fell = [f"{name} ({_percent(kept[name])})" for name in kept if name not in stood]
        yield (
            f"**{_heading(scenario)}**: kept by {', '.join(stood) or 'none'}; "
            f"not by {', '.join(fell) or 'any other'}."
        )


def _kept(known: Known, name: str, scenario: Scenario) -> float:
    """Return the share of the method's own gain over the base that is left; 0 if it stopped."""
    clean = known[f"{name.partition(':')[0]}: none", SCENARIOS[0]]
    base = fmean(result.outcome.base for result in clean)
    gain = (base - _loss(known[name, scenario])) / (base - _loss(clean))
    return gain if math.isfinite(gain) else 0.0


def _cell(known: Known, name: str, scenario: Scenario) -> str:
    results = known.get((name, scenario))
    if not results:
        return "\N{EN DASH}"
    loss, error = _loss(results), _error(results)
    return f"{loss:.2f} ({error:.2f})" if math.isfinite(loss) else "stopped"


def _marks(known: Known, value: Callable[[Sequence[Result]], float]) -> dict[str, Marks]:
    """Return a value of each defence, by scenario."""
    marks: dict[str, dict[str, list[float]]] = {_heading(scenario): {} for scenario in SCENARIOS}
    for (name, scenario), results in known.items():
        marks[_heading(scenario)][name] = [value(results)]
    return dict(marks)


def _style(attack: str, attackers: int) -> Style:
    size = 34 if attackers else 90
    return {"marker": _MARKERS[attackers], "s": size, "c": _COLOURS[attack], "alpha": 0.85}


def _loss(results: Sequence[Result]) -> float:
    return fmean(result.loss for result in results)


def _error(results: Sequence[Result]) -> float:
    return fmean(result.outcome.error for result in results)


def _names() -> list[str]:
    return [_name(method, rule) for method, rule in DEFENCES]


def _name(method: str, rule: str) -> str:
    return f"{method}: {rule}"


def _heading(scenario: Scenario) -> str:
    attack, attackers = scenario
    return f"{attackers} {attack}" if attackers else "nobody attacks"


def _percent(share: float) -> str:
    return fmt.percent(share).replace("-", "\N{MINUS SIGN}")
