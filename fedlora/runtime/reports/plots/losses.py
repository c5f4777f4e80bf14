"""The plots of a run's report: losses by round and by way of training."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedlora.runtime.reports.findings import MANY_SITES
from fedlora.runtime.reports.plots.canvas import (
    BLUE,
    CARD,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    SITE_COLOURS,
    STYLE,
    WIDTH,
    End,
    Points,
    as_svg,
    draw_line,
    finite_points,
    label_ends,
    label_room,
    set_margins,
    shortened,
)
from fedlora.sections import LossUnit

_MARKS: Mapping[str, Mapping[str, Any]] = {
    "base": {"label": "base", "marker": "o", "s": 40, "c": CARD, "edgecolors": MUTED},
    "alone": {"label": "site alone", "marker": "D", "s": 34, "c": ORANGE},
    "pooled": {"label": "all data pooled", "marker": "|", "s": 190, "c": GREEN, "linewidths": 2.6},
    "federated": {"label": "federated", "marker": "o", "s": 60, "c": BLUE, "edgecolors": CARD},
}
"""From back to front. Shapes differ too: two marks are often in one place."""


def loss_by_round(
    sites: Mapping[str, Points],
    summary: Points,
    *,
    summary_label: str,
    height: float,
    unit: LossUnit,
) -> Markup:
    """Draw a line for each site, or bands for many sites, and one thick line that sums them up.

    Args:
        sites: each site's loss in nats per ``unit``; a site without any keeps its colour.
        summary: the values of the thick line; empty for none.
        summary_label: what is written beside the thick line.
        height: inches.
        unit: what a loss is a mean over.

    Returns:
        An ``<svg>`` element.
    """
    sites = {site: finite_points(points) for site, points in sites.items()}
    summary = finite_points(summary)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_subplot(xlabel="round", title=f"nats per {unit}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
        ends: list[End] = []
        if len(sites) > MANY_SITES:
            _bands(axes, sites)
        else:
            coloured = zip(sites.items(), SITE_COLOURS, strict=False)
            ends = [
                draw_line(axes, points, label=site, colour=colour)
                for (site, points), colour in coloured
                if points
            ]
        if summary:
            ends.append(draw_line(axes, summary, label=summary_label, colour=INK, bold=True))
        room = label_room([end.label for end in ends]) + 0.03
        set_margins(figure, left=0.055, right=1 - room, bottom=0.42, top=0.28)
        label_ends(axes, ends, points_high=72 * (height - 0.7))
        return as_svg(figure, what=f"{summary_label.capitalize()} loss and loss by site, by round")


def loss_by_training(rows: Mapping[str, Mapping[str, float]], *, unit: LossUnit) -> Markup:
    """Draw a row of marks for each site, one mark for each way of training.

    Args:
        rows: held-out losses by ``base``, ``alone``, ``pooled`` and ``federated`` for each row,
            from the top; the first is emphasised.
        unit: what a loss is a mean over.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(WIDTH, 0.86 + 0.29 * len(rows)))
        axes = figure.add_subplot(xlabel=f"held-out loss, nats per {unit} (lower is better)")
        for y, losses in enumerate(rows.values()):
            finite = [loss for loss in losses.values() if math.isfinite(loss)]
            if finite:
                axes.plot([min(finite), max(finite)], [y, y], color=GRID, linewidth=3, zorder=1)
        for depth, (key, style) in enumerate(_MARKS.items(), start=2):
            values = [losses.get(key, math.nan) for losses in rows.values()]
            if any(map(math.isfinite, values)):
                axes.scatter(values, range(len(rows)), zorder=depth, **style)
        names = [shortened(row) for row in rows]
        axes.set_yticks(range(len(rows)), names, color=INK)
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handletextpad=0.3, borderpad=0
        )
        set_margins(figure, left=label_room(names), right=0.985, bottom=0.46, top=0.32)
        return as_svg(figure, what="Held-out loss by site and way of training")


def _bands(axes: Axes, sites: Mapping[str, Points]) -> None:
    rounds = sorted({number for points in sites.values() for number in points})
    quantiles = np.array(
        [
            np.quantile([p[number] for p in sites.values() if number in p], (0.1, 0.25, 0.75, 0.9))
            for number in rounds
        ]
    )
    for low, high in ((0, 3), (1, 2)):
        edges = quantiles[:, low], quantiles[:, high]
        axes.fill_between(rounds, *edges, color=BLUE, alpha=0.2, linewidth=0)
