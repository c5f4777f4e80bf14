"""Dot plots as SVG files, in the colours of the report's plots."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedlora.runtime.reports.plots.canvas import BLUE, CARD, GREEN, INK, MUTED, STYLE

_WIDTH = 8.8
_ROW = 0.27
"""Inches."""
_FONT_SIZE = 8.5
_STYLE = STYLE | {
    "font.family": "sans-serif",  # the report has its page's
    "axes.grid.axis": "both",
    "xtick.minor.size": 0,
    "ytick.color": INK,
}

Marks = Mapping[str, Sequence[float]]
"""Places on the x axis by row; what is not finite is left out."""

Style = Mapping[str, Any]
"""Matplotlib's arguments of a scatter."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One x axis over the common rows."""

    label: str
    marks: Mapping[str, Marks]
    """By kind, from back to front."""
    band: tuple[float, float] | None = None
    """A stretch of the axis that is shaded."""
    least: float | None = None
    """Makes the axis logarithmic; what is below stands at this value."""


SEEDS: Mapping[str, Style] = {
    "seed": {"marker": "o", "s": 11, "c": MUTED},
    "mean": {"marker": "o", "s": 52, "c": BLUE, "edgecolors": CARD},
}


def seeds_and_mean(values: Marks) -> Mapping[str, Marks]:
    """Return marks for each seed and for their mean, in the styles of ``SEEDS``."""
    if all(len(several) == 1 for several in values.values()):
        return {"mean": values}
    return {"mean": {row: [fmean(several)] for row, several in values.items()}, "seed": values}


def draw(
    rows: Sequence[str], panels: Sequence[Panel], *, styles: Mapping[str, Style], bold: str = ""
) -> str:
    """Draw a row of marks for each of ``rows``, from the top, in each panel.

    Returns:
        An SVG document; equal data give equal bytes.
    """
    with mpl.rc_context(_STYLE):
        height = 0.9 + _ROW * len(rows)
        figure = Figure(figsize=(_WIDTH, height), facecolor=CARD)
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(all_axes, panels, strict=True):
            _fill(axes, panel, rows=rows, styles=styles)
        first = all_axes[0]
        first.set_yticks(range(len(rows)), rows)
        first.set_ylim(len(rows) - 0.5, -0.5)
        for label in first.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == bold else "normal")
        handles, labels = first.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="upper right", ncols=len(labels), handletextpad=0.2, borderpad=0.3
        )
        left = (max(map(len, rows)) * 0.58 * _FONT_SIZE + 14) / (72 * _WIDTH)
        figure.subplots_adjust(
            left=left, right=0.98, bottom=0.48 / height, top=1 - 0.34 / height, wspace=0.06
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return re.sub(r"\s*<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)


def _fill(axes: Axes, panel: Panel, *, rows: Sequence[str], styles: Mapping[str, Style]) -> None:
    axes.set_xlabel(panel.label)
    if panel.band:
        axes.axvspan(*panel.band, color=GREEN, alpha=0.15, linewidth=0)
    if panel.least:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    for depth, (kind, marks) in enumerate(panel.marks.items(), start=2):
        places = [
            (max(x, panel.least) if panel.least else x, rows.index(row))
            for row, values in marks.items()
            for x in values
            if math.isfinite(x)
        ]
        if places:
            axes.scatter(*zip(*places, strict=True), label=kind, zorder=depth, **styles[kind])
