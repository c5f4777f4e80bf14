"""The report of a run: one HTML file that needs no network, no script and no other file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from fedlora import atomic
from fedlora.runtime.comparison import Comparison, Losses, overall, read_comparison
from fedlora.runtime.privacy_statement import statement
from fedlora.runtime.reports import findings
from fedlora.runtime.reports.findings import Record
from fedlora.runtime.reports.page import render
from fedlora.runtime.reports.plots import losses as plots
from fedlora.runtime.run_folder import RunFolder
from fedlora.sections import LossUnit

_MOST_SITES = 40
"""Sites that the plot of the comparison shows."""
_BANDS = "The bands hold the middle 50 % and the middle 80 % of the {} sites."


@dataclass(frozen=True, kw_only=True)
class _Plot:
    title: str
    caption: Sequence[str]
    """Sentences."""
    svg: Markup


def write_report(run: RunFolder) -> None:
    """Write ``report.html`` from the run folder alone; equal runs give equal bytes.

    Whatever a round lacks is shown as missing. Names and reasons that came from sites are escaped.
    With ``privacy.unit: client`` nothing is shown of the rounds but their number.

    Raises:
        StorageError: the report cannot be written.
    """
    recipe, records = run.recipe(), run.records()
    complete, privacy = records[-1]["round"] if records else 0, statement(recipe, records)
    if recipe.privacy.unit == "client":
        records = []  # they tell of single clients, if only by how many there were
    comparison = read_comparison(run) if records else Comparison(base={}, federated={}, alone={})
    rows, rounds = findings.trained(comparison), findings.rounds(records)
    sites = sorted({site for row in rows for site in row.losses})
    columns = zip(*(row.values(sites) for row in rows), strict=True)
    html = render(
        "report.html.j2",
        run=run.name,
        recipe=recipe,
        privacy=privacy,
        spec=run.spec(),
        complete=complete,
        outcome=findings.outcome(records, comparison, unit=recipe.loss_unit),
        figures=findings.figures(records, comparison, unit=recipe.loss_unit),
        plots=_plots(records, comparison, recipe.loss_unit),
        sites=sites,
        many=len(sites) > findings.MANY_SITES,
        rows=rows,
        best=[min(filter(math.isfinite, column), default=None) for column in columns],
        measured=any(map(findings.evaluation, records)),
        rounds=rounds,
        totals=findings.totals(rounds),
    )
    atomic.write_file(run.report, html)


def _plots(records: Sequence[Record], comparison: Comparison, unit: LossUnit) -> list[_Plot]:
    """Return the plots for which there are data."""
    made, sites = [], findings.sites_of(records)  # the same in each plot: so are their colours
    measured = {record["round"]: findings.evaluation(record) for record in records}
    if any(measured.values()):
        measured = {number: losses for number, losses in measured.items() if losses}
        made.append(_held_out(measured, sites, unit))
    if comparison.alone:
        made.append(_ways_of_training(comparison, unit))
    if any(map(findings.training, records)):
        made.append(_training(records, sites, unit))
    return made


def _held_out(measured: Mapping[int, Losses], names: Sequence[str], unit: LossUnit) -> _Plot:
    losses = {n: {site: one.loss for site, one in by.items()} for n, by in measured.items()}
    sites = findings.by_site(losses, names)
    caption = ["Round 0 is the base model, before any training."]
    if len(sites) > 1:
        caption.append(f"Overall is the mean over the held-out {unit}s of all sites.")
    if len(sites) > findings.MANY_SITES:
        caption.append(_BANDS.format(len(sites)))
    if any(len(by) < len(sites) for by in measured.values()):
        caption.append("Where a round was measured at some sites only, overall is theirs.")
    svg = plots.loss_by_round(
        sites if len(sites) > 1 else {},  # the overall line is that one site's
        {number: overall(by).loss for number, by in measured.items()},
        summary_label="overall" if len(sites) > 1 else next(iter(sites)),
        height=3.5,
        unit=unit,
    )
    return _Plot(title="Held-out loss by round", caption=caption, svg=svg)


def _training(records: Sequence[Record], names: Sequence[str], unit: LossUnit) -> _Plot:
    sites = findings.by_site({r["round"]: findings.training(r) for r in records}, names)
    caption = ["Mean over a site's local steps in the round, on its own training rows."]
    means: dict[int, float] = {}
    if len(sites) > findings.MANY_SITES:
        caption.append(_BANDS.format(len(sites)))
        by_round = {r["round"]: findings.training(r).values() for r in records}
        means = {number: fmean(losses) for number, losses in by_round.items() if losses}
    svg = plots.loss_by_round(sites, means, summary_label="mean of sites", height=2.3, unit=unit)
    return _Plot(title="Training loss by round", caption=caption, svg=svg)


def _ways_of_training(comparison: Comparison, unit: LossUnit) -> _Plot:
    """Return the plot of the comparison; of many sites it shows those that are served worst."""
    rows = {row.kind: row for row in findings.trained(comparison) if row.kind != "alone"}
    marks = {"base": "base", "federated": "federated", "pooled": "pooled"}
    sites = {
        site: {mark: row.losses.get(site, math.nan) for mark, row in rows.items() if mark in marks}
        for site in comparison.base
    }
    for site, losses in comparison.alone.items():
        if site in sites and site in losses:
            sites[site]["alone"] = losses[site].loss
    caption = [
        "A site alone is its own model, trained for the steps of all rounds, on its own held-out",
        "rows; overall, the mean of these models on all sites' rows.",
        "The pooled training took the steps of all sites together.",
    ]
    if len(sites) > _MOST_SITES:
        by_loss = sorted(sites, key=lambda site: -sites[site].get("federated", math.inf))
        sites = {site: sites[site] for site in by_loss[:_MOST_SITES]}
        caption.append(f"Shown are the {_MOST_SITES} sites with the highest federated loss.")
    total = {"alone" if kind == "mean" else kind: row.overall for kind, row in rows.items()}
    svg = plots.loss_by_training({"overall": total} | sites, unit=unit)
    return _Plot(title="What federating was worth", caption=caption, svg=svg)
