"""The plots of an audit: what is shown of ε beside what is promised, and an attack's ROC curves."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedlora.runtime.reports.plots.canvas import (
    BLUE,
    GRID,
    MUTED,
    RED,
    STYLE,
    WIDTH,
    Points,
    as_svg,
    draw_line,
    label_ends,
    label_room,
    set_margins,
)

_HEIGHT = 3.2
"""Inches."""


def epsilon_by_round(accounted: Points, shown: Points, *, most: float) -> Markup:
    """Draw the accountant's upper bound and the canaries' lower bound on ε.

    Args:
        accounted: by round.
        shown: by round.
        most: what could have been shown at the end, as a dashed line.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, _HEIGHT))
        axes = figure.add_subplot(xlabel="round", title="ε of the rounds so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
        axes.axhline(most, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        note = "right guesses alone would show"
        axes.annotate(note, (min(shown), most), (0, 3), textcoords="offset points", color=MUTED)
        ends = [
            draw_line(axes, accounted, label="accountant: at most", colour=BLUE, bold=True),
            draw_line(axes, shown, label="shown: at least", colour=RED, bold=True),
        ]
        axes.set_ylim(0, 1.12 * max(most, *accounted.values(), *shown.values()))
        room = label_room([end.label for end in ends]) + 0.03
        set_margins(figure, left=0.055, right=1 - room, bottom=0.42, top=0.28)
        label_ends(axes, ends, points_high=72 * (_HEIGHT - 0.7))
        return as_svg(figure, what="Upper and lower bound on epsilon, by round")


def roc(curves: Mapping[str, Sequence[tuple[float, float]]], *, least: float) -> Markup:
    """Draw ROC curves, both axes logarithmic: what matters is at few false positives.

    Args:
        curves: false and true positives by what is written beside the curve; at most two.
        least: share at which both axes begin.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(WIDTH, _HEIGHT))
        axes = figure.add_subplot(
            xlabel="others taken for members", title="members found", xscale="log", yscale="log"
        )
        axes.plot([least, 1], [least, 1], color=GRID, linewidth=2, label="by chance")
        for (name, curve), colour in zip(curves.items(), (BLUE, RED), strict=False):
            points = [(x, y) for x, y in curve if x >= least and y >= least and math.isfinite(y)]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, label=name)
        axes.set_xlim(least, 1)
        axes.set_ylim(least, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(
                lambda share, _: f"{share:.3%}".rstrip("0%").rstrip(".") + " %"
            )
        axes.legend(loc="lower right")
        set_margins(figure, left=0.08, right=0.98, bottom=0.42, top=0.28)
        return as_svg(figure, what="ROC curves of membership inference")
