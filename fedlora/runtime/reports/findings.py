"""What a run's records and baselines say, in the sentences, figures and rows of its report."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

from fedlora.runtime.comparison import Comparison, Losses, losses_of, overall
from fedlora.runtime.reports import format as fmt
from fedlora.sections import LossUnit

_LARGE = 700
"""A loss whose perplexity no longer fits a float."""

MANY_SITES = 8
"""Above this a table or plot shows what sums the sites up instead of each."""

Record = Mapping[str, Any]
"""One line of ``rounds.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A row of the comparison: what an adapter trained one way reaches, in nats."""

    label: str
    kind: str
    """``base``, ``alone`` (one site), ``mean`` (of the sites alone), ``federated``, ``pooled``."""
    losses: Mapping[str, float]
    """By the site whose held-out rows were measured."""
    overall: float

    def values(self, sites: Sequence[str]) -> list[float]:
        """Return the sites' losses, then the overall loss."""
        return [*(self.losses.get(site, math.nan) for site in sites), self.overall]

    @property
    def perplexity(self) -> float:
        """Of the overall loss, where that is one of tokens."""
        return math.exp(self.overall) if self.overall < _LARGE else math.nan


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number that is shown large, and what to hold it against."""

    name: str
    value: str
    against: str


@dataclass(frozen=True)
class Measure:
    """What was measured of the base, and of the adapter on it."""

    name: str
    base: str
    adapter: str
    unit: str = ""


_NAMES = {"macro_f1": "Macro F1"}


def evaluation(record: Record) -> Losses:
    """Return a round's held-out losses; none where it was not evaluated."""
    return losses_of(record.get("evaluation") or {}, record.get("shares") or {})


def _public(record: Record) -> Losses:
    """Return the losses on the public text, by the site that measured them."""
    return losses_of(record.get("public") or {})


def training(record: Record) -> dict[str, float]:
    """Return the training loss of each site whose update was folded and that told one."""
    folded = record.get("folded") or {}
    losses = {site: fmt.number(facts.get("train_loss")) for site, facts in folded.items()}
    return {site: loss for site, loss in losses.items() if math.isfinite(loss)}


def by_site(
    rounds: Mapping[int, Mapping[str, float]], sites: Sequence[str]
) -> dict[str, dict[int, float]]:
    """Turn values by round and site into values by site and round; a site may have none."""
    return {
        site: {number: values[site] for number, values in rounds.items() if site in values}
        for site in sites
    }


def sites_of(records: Sequence[Record]) -> list[str]:
    """Return all sites that a run measured or trained at, in order of name."""
    return sorted(
        {*chain.from_iterable((*evaluation(r), *(r.get("cohort") or ())) for r in records)}
    )


def trained(comparison: Comparison) -> list[Trained]:
    """Return the rows of the comparison; what was not measured has none."""
    rows = [_row("base", comparison.base, kind="base")]
    by_trainer = sorted(comparison.alone.items())
    alone = [_row(f"{site} alone", losses, kind="alone") for site, losses in by_trainer]
    rows += alone
    if alone:
        sites = set.intersection(*(set(row.losses) for row in alone))
        mean = {site: fmean(row.losses[site] for row in alone) for site in sites}
        total = fmean(row.overall for row in alone)
        rows.append(Trained(label="mean of sites alone", kind="mean", losses=mean, overall=total))
    rows.append(_row("federated", comparison.federated, kind="federated"))
    rows.append(_row("all data pooled", comparison.pooled or {}, kind="pooled"))
    return [row for row in rows if row.losses]


def outcome(records: Sequence[Record], comparison: Comparison, *, unit: LossUnit) -> str:
    """Return in a sentence what the run reached."""
    base, last, number = _both_ends(records, comparison)
    before, after = overall(base).loss, overall(last).loss
    if not (any(map(evaluation, records)) or last):
        return "No held-out loss was measured."
    if not math.isfinite(before + after):
        return "The held-out loss has not been measured at both ends of the run."
    sites = fmt.counted(len(base), "site")
    if number == 0:
        start = f"The base model's held-out loss is {fmt.loss(before, 2)} nats per {unit}"
        return f"{start} over {sites}; no federated round has been measured yet."
    if fmt.loss(before, 2) == fmt.loss(after, 2):
        change = f"left the held-out loss at {fmt.loss(after, 2)} nats per {unit}"
    else:
        change = (
            f"{'lowered' if after < before else 'raised'} the held-out loss from "
            f"{fmt.loss(before, 2)} to {fmt.loss(after, 2)} nats per {unit}"
        )
        if unit == "token":
            change += f" (perplexity {_shown_perplexity(base)} → {_shown_perplexity(last)})"
    gap = _gap({row.kind: row.overall for row in trained(comparison)})
    return f"Federated training {change} over {sites} in {fmt.counted(number, 'round')}{gap}."


def figures(records: Sequence[Record], comparison: Comparison, *, unit: LossUnit) -> list[Figure]:
    """Return the figures that stand at the top of the report."""
    base, last, number = _both_ends(records, comparison)
    found: list[Figure] = []

    def add(name: str, value: str, against: str) -> None:
        found.append(Figure(name=name, value=value, against=against))

    if base:
        before, after = (fmt.loss(overall(losses).loss, 2) for losses in (base, last))
        add("Held-out loss", after, f"base {before} nats per {unit}")
    if base and unit == "token":
        add("Perplexity", _shown_perplexity(last), f"base {_shown_perplexity(base)}")
    for measure in measures(records):
        add(measure.name, measure.adapter, f"base {measure.base}{measure.unit}")
    own = {s: losses[s] for s, losses in comparison.alone.items() if s in losses and s in last}
    for name, baseline in (("the base", base if number else {}), ("own model", own)):
        if baseline:
            better = sum(last[site].loss < measured.loss for site, measured in baseline.items())
            add(f"Beats {name}", f"{better} of {len(baseline)}", "sites, on own rows")
    if records:
        sums = totals(rounds(records))
        down, up = sums["bytes_down"], sums["bytes_up"]
        add("Traffic", fmt.size(down + up), f"{fmt.size(down)} down, {fmt.size(up)} up")
        complete = fmt.counted(records[-1]["round"], "round")
        add("Time", fmt.duration(sums["seconds"]), f"for {complete}")
    return found


def measures(records: Sequence[Record]) -> list[Measure]:
    """Return what was measured besides the held-out loss, at the sites that measured both."""
    base, last, _ = _ends(evaluation, records)
    of_base, of_last = overall(base).means, overall(last).means
    found = [
        Measure(
            name=_NAMES.get(name, name.replace("_", " ").capitalize()),
            base=fmt.percent(of_base[name], 1),
            adapter=fmt.percent(of_last[name], 1),
        )
        for name in of_base
        if name in of_last
    ]
    base, last, _ = _ends(_public, records)
    if base:
        before, after = (fmt.loss(overall(losses).loss) for losses in (base, last))
        found.append(Measure("Public text", before, after, unit=" nats per token"))
    return found


def rounds(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return what the table of rounds shows of each record."""
    numbers = ("bytes_down", "bytes_up", "seconds", "tail")
    return [
        {key: fmt.number(record.get(key)) for key in numbers}
        | {
            "number": record["round"],
            "loss": overall(evaluation(record)).loss,
            "folded": len(record.get("folded") or ()),
            "cohort": len(record.get("cohort") or ()),
            "refused": dict(record.get("refused") or {}),
            "error": fmt.number(_sum(record).get("error_bound")),
            "abandoned": _sum(record).get("abandoned", ""),
            "late": dict(_sum(record).get("late") or {}),
        }
        for record in records
    ]


def totals(shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums over the rows that ``rounds`` made."""
    sums: dict[str, Any] = {
        key: sum(row[key] for row in shown if math.isfinite(row[key]))
        for key in ("bytes_down", "bytes_up", "seconds", "tail", "folded", "cohort")
    }
    return sums | {
        "refused": sum(len(row["refused"]) for row in shown),
        "told": any(row["refused"] or row["late"] or row["abandoned"] for row in shown),
        "masked": any(row["abandoned"] or math.isfinite(row["error"]) for row in shown),
    }


def _sum(record: Record) -> Mapping[str, Any]:
    """Return what a record says of a round's secure sum; nothing where there was none."""
    return record.get("secure_sum") or {}


def _row(label: str, losses: Losses, *, kind: str) -> Trained:
    by_name = {site: measured.loss for site, measured in losses.items()}
    return Trained(label=label, kind=kind, losses=by_name, overall=overall(losses).loss)


def _gap(losses: Mapping[str, float]) -> str:
    """Return the end of the outcome: where federating lies between alone and pooled."""
    alone, federated, pooled = (losses.get(k, math.nan) for k in ("mean", "federated", "pooled"))
    if not math.isfinite(alone + federated + pooled):
        return ""
    if pooled >= alone:
        return (
            f". Pooling all data gained nothing over sites training alone ({fmt.loss(pooled, 2)} "
            f"against {fmt.loss(alone, 2)}), so there was no gap to close"
        )
    if federated > alone:
        against = f"{fmt.loss(federated, 2)} against {fmt.loss(alone, 2)}"
        return f"; it stayed behind sites training alone ({against})"
    if federated < pooled:
        return f"; it did even better than training on all data pooled ({fmt.loss(pooled, 2)})"
    share = fmt.percent((alone - federated) / (alone - pooled))
    return f"; it closed {share} of the gap between sites training alone and all data pooled"


def _both_ends(records: Sequence[Record], comparison: Comparison) -> tuple[Losses, Losses, int]:
    """Return the base's and the federation's evaluation, and after which round the latter is."""
    if any(map(evaluation, records)) or not comparison.federated:
        return _ends(evaluation, records)
    return comparison.base, comparison.federated, records[-1]["round"]


def _ends(
    read: Callable[[Record], Losses], records: Sequence[Record]
) -> tuple[Losses, Losses, int]:
    """Return the base's and the last evaluation, of the sites in both, and the latter's round."""
    measured = {record["round"]: losses for record in records if (losses := read(record))}
    number = max(measured, default=0)
    first, last = measured.get(0, {}), measured.get(number, {})
    shared = [site for site in first if site in last]
    return {site: first[site] for site in shared}, {site: last[site] for site in shared}, number


def _shown_perplexity(losses: Losses) -> str:
    return fmt.perplexity(overall(losses).perplexity)
