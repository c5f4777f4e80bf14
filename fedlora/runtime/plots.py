"""The report's plots, as inline SVG. The only importer of matplotlib.

Text stays text and colours become CSS variables, so a plot takes on the page's font and its light
or dark theme. Equal data give equal bytes.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedlora.runtime.findings import MANY_SITES

Points = Mapping[int, float]
"""Values by round; what is not finite is left out."""

INK, MUTED, GRID, CARD = "#1c1f24", "#5f6670", "#e3e5e8", "#ffffff"
# Okabe and Ito's colours, then two of Paul Tol's: distinct in every kind of colour vision.
BLUE, RED, GREEN, PINK, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
_SITES = (BLUE, RED, GREEN, PINK, ORANGE, "#56b4e9", "#882255", "#999933")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", CARD: "card"} | {
    colour: f"series-{number}" for number, colour in enumerate(_SITES, start=1)
}
_WIDTH = 8.8
"""Inches; the page shows it about 1.3 times as large."""
_FONT_SIZE = 8.5
_LABEL_LENGTH = 24
_MARKED_ROUNDS = 40
"""Most points of a line that are marked one by one."""
STYLE: dict[Any, Any] = {  # matplotlib lists all keys in its type
    "svg.fonttype": "none",
    "svg.hashsalt": "fedlora",
    "text.parse_math": False,  # a name is never a formula
    "font.size": _FONT_SIZE,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": _FONT_SIZE,
    "axes.titlecolor": MUTED,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.markeredgecolor": CARD,
    "lines.markeredgewidth": 0.7,
}
_MARKS: Mapping[str, Mapping[str, Any]] = {
    "base": {"label": "base", "marker": "o", "s": 40, "c": CARD, "edgecolors": MUTED},
    "alone": {"label": "site alone", "marker": "D", "s": 34, "c": ORANGE},
    "pooled": {"label": "all data pooled", "marker": "|", "s": 190, "c": GREEN, "linewidths": 2.6},
    "federated": {"label": "federated", "marker": "o", "s": 60, "c": BLUE, "edgecolors": CARD},
}
"""From back to front. Shapes differ too: two marks are often in one place."""


@dataclass(frozen=True, kw_only=True)
class _End:
    """Where a line ends, and what is written beside it."""

    x: float
    y: float
    label: str
    colour: str
    weight: str


def loss_by_round(
    sites: Mapping[str, Points], summary: Points, *, summary_label: str, height: float
) -> Markup:
    """Draw a line for each site, or bands for many sites, and one thick line that sums them up.

    Args:
        sites: each site's loss in nats per token; a site without any keeps its colour.
        summary: the values of the thick line; empty for none.
        summary_label: what is written beside the thick line.
        height: inches.

    Returns:
        An ``<svg>`` element.
    """
    sites = {site: _finite(points) for site, points in sites.items()}
    summary = _finite(summary)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_subplot(xlabel="round", title="nats per token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
        ends: list[_End] = []
        if len(sites) > MANY_SITES:
            _bands(axes, sites)
        else:
            coloured = zip(sites.items(), _SITES, strict=False)
            ends = [
                _line(axes, points, label=site, colour=colour)
                for (site, points), colour in coloured
                if points
            ]
        if summary:
            ends.append(_line(axes, summary, label=summary_label, colour=INK, bold=True))
        room = _room([end.label for end in ends]) + 0.03
        _margins(figure, left=0.055, right=1 - room, bottom=0.42, top=0.28)
        _label(axes, ends, points_high=72 * (height - 0.7))
        return _svg(figure, what=f"{summary_label.capitalize()} loss and loss by site, by round")


def loss_by_training(rows: Mapping[str, Mapping[str, float]]) -> Markup:
    """Draw a row of marks for each site, one mark for each way of training.

    Args:
        rows: held-out losses by ``base``, ``alone``, ``pooled`` and ``federated`` for each row,
            from the top; the first is emphasised.

    Returns:
        An ``<svg>`` element.
    """
    with mpl.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(_WIDTH, 0.86 + 0.29 * len(rows)))
        axes = figure.add_subplot(xlabel="held-out loss, nats per token (lower is better)")
        for y, losses in enumerate(rows.values()):
            finite = [loss for loss in losses.values() if math.isfinite(loss)]
            if finite:
                axes.plot([min(finite), max(finite)], [y, y], color=GRID, linewidth=3, zorder=1)
        for depth, (key, style) in enumerate(_MARKS.items(), start=2):
            values = [losses.get(key, math.nan) for losses in rows.values()]
            if any(map(math.isfinite, values)):
                axes.scatter(values, range(len(rows)), zorder=depth, **style)
        names = [_short(row) for row in rows]
        axes.set_yticks(range(len(rows)), names, color=INK)
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handletextpad=0.3, borderpad=0
        )
        _margins(figure, left=_room(names), right=0.985, bottom=0.46, top=0.32)
        return _svg(figure, what="Held-out loss by site and way of training")


def spread(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return positions at least ``gap`` apart, nearest to ``values`` in least squares.

    This is isotonic regression, by pooling neighbours, of the values less their share of the gaps.

    Args:
        values: ascending.
        gap: smallest distance of two positions.
        low: smallest position.
        high: largest position, as long as there is room for all.
    """
    blocks: list[list[float]] = []
    for index, value in enumerate(values):
        blocks.append([value - index * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) > fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    means = [fmean(block) for block in blocks for _ in block]
    top = max(low, high - (len(values) - 1) * gap)
    return [min(max(mean, low), top) + index * gap for index, mean in enumerate(means)]


def _finite(points: Points) -> Points:
    return {number: points[number] for number in sorted(points) if math.isfinite(points[number])}


def _line(axes: Axes, points: Points, *, label: str, colour: str, bold: bool = False) -> _End:
    x, y = list(points), list(points.values())
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=2.6 if bold else 1.5,
        marker="o" if len(x) <= _MARKED_ROUNDS else "",
        markersize=5.5 if bold else 3.8,
        clip_on=False,
        zorder=4 if bold else 3,
    )
    text, weight = f"{_short(label)} {y[-1]:.2f}", "bold" if bold else "normal"
    return _End(x=x[-1], y=y[-1], label=text, colour=colour, weight=weight)


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


def _label(axes: Axes, ends: Sequence[_End], *, points_high: float) -> None:
    """Write each label right of the plot and lead its line there, apart from the others."""
    ends = sorted(ends, key=lambda end: end.y)
    first, last = axes.dataLim.intervalx
    if not last > first:  # one round, or none at all
        first, last = (first - 0.5, first + 0.5) if ends else (0, 1)
    low, high = axes.get_ylim()
    gap = 1.4 * _FONT_SIZE / points_high * (high - low)
    places = spread([end.y for end in ends], gap=gap, low=low, high=high)
    for end, place in zip(ends, places, strict=True):
        at = last + 0.022 * (last - first)
        axes.plot([end.x, at], [end.y, place], color=end.colour, linewidth=0.7, clip_on=False)
        at += 0.004 * (last - first)
        axes.text(at, place, end.label, verticalalignment="center", fontweight=end.weight)
    axes.set_xlim(first, last)
    axes.set_ylim(low, high)


def _short(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else f"{name[: _LABEL_LENGTH - 1]}…"


def _room(labels: Sequence[str]) -> float:
    """Return the share of the width that the longest label needs, whatever the page's font."""
    return (max(map(len, labels), default=0) * 0.6 * _FONT_SIZE + 12) / (72 * _WIDTH)


def _margins(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> None:
    """Place the axes: left and right as shares of the width, bottom and top in inches."""
    height = figure.get_figheight()
    figure.subplots_adjust(left=left, right=right, bottom=bottom / height, top=1 - top / height)


def _svg(figure: Figure, *, what: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    _, _, body = buffer.getvalue().partition("<svg")
    body = body.partition(">")[2]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # every plot has the same ones
    body = re.sub(r"font-family: [^;\"]*; ?", "", body)  # the page's
    body = re.sub(r"(fill|stroke): (#\w{6})", _as_variable, body)
    width, height = figure.get_size_inches() * 72
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{what}">'
    )
    return Markup(head + body.strip())  # noqa: S704 - matplotlib escapes the names in it


def _as_variable(match: re.Match[str]) -> str:
    name = _VARIABLES.get(match[2])
    return f"{match[1]}: var(--{name})" if name else match[0]
