"""How all plots look: inline SVG whose text and colours are the page's.

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

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = Mapping[int, float]
"""Values by round; what is not finite is left out."""

INK, MUTED, GRID, CARD = "#1c1f24", "#5f6670", "#e3e5e8", "#ffffff"
# Okabe and Ito's colours, then two of Paul Tol's: distinct in every kind of colour vision.
BLUE, RED, GREEN, PINK, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
SITE_COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, "#56b4e9", "#882255", "#999933")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", CARD: "card"} | {
    colour: f"series-{number}" for number, colour in enumerate(SITE_COLOURS, start=1)
}
WIDTH = 8.8
"""Inches; the page shows it about 1.3 times as large."""
FONT_SIZE = 8.5
_LABEL_LENGTH = 24
_MARKED_ROUNDS = 40
"""Most points of a line that are marked one by one."""
STYLE: dict[Any, Any] = {  # matplotlib lists all keys in its type
    "svg.fonttype": "none",
    "svg.hashsalt": "fedlora",
    "text.parse_math": False,  # a name is never a formula
    "font.size": FONT_SIZE,
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
    "axes.titlesize": FONT_SIZE,
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


@dataclass(frozen=True, kw_only=True)
class End:
    """Where a line ends, and what is written beside it."""

    x: float
    y: float
    label: str
    colour: str
    weight: str


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


def finite_points(points: Points) -> Points:
    """Return the points in order, without those that are not finite."""
    return {number: points[number] for number in sorted(points) if math.isfinite(points[number])}


def draw_line(axes: Axes, points: Points, *, label: str, colour: str, bold: bool = False) -> End:
    """Draw a line through points, at least one, and return where it ends."""
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
    text, weight = f"{shortened(label)} {y[-1]:.2f}", "bold" if bold else "normal"
    return End(x=x[-1], y=y[-1], label=text, colour=colour, weight=weight)


def label_ends(axes: Axes, ends: Sequence[End], *, points_high: float) -> None:
    """Write each label right of the plot and lead its line there, apart from the others."""
    ends = sorted(ends, key=lambda end: end.y)
    first, last = axes.dataLim.intervalx
    if not last > first:  # one round, or none at all
        first, last = (first - 0.5, first + 0.5) if ends else (0, 1)
    low, high = axes.get_ylim()
    gap = 1.4 * FONT_SIZE / points_high * (high - low)
    places = spread([end.y for end in ends], gap=gap, low=low, high=high)
    for end, place in zip(ends, places, strict=True):
        at = last + 0.022 * (last - first)
        axes.plot([end.x, at], [end.y, place], color=end.colour, linewidth=0.7, clip_on=False)
        at += 0.004 * (last - first)
        axes.text(at, place, end.label, verticalalignment="center", fontweight=end.weight)
    axes.set_xlim(first, last)
    axes.set_ylim(low, high)


def shortened(name: str) -> str:
    """Return a name as long as there is room for."""
    return name if len(name) <= _LABEL_LENGTH else f"{name[: _LABEL_LENGTH - 1]}…"


def label_room(labels: Sequence[str]) -> float:
    """Return the share of the width that the longest label needs, whatever the page's font."""
    return (max(map(len, labels), default=0) * 0.6 * FONT_SIZE + 12) / (72 * WIDTH)


def set_margins(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> None:
    """Place the axes: left and right as shares of the width, bottom and top in inches."""
    height = figure.get_figheight()
    figure.subplots_adjust(left=left, right=right, bottom=bottom / height, top=1 - top / height)


def as_svg(figure: Figure, *, what: str) -> Markup:
    """Return a figure as an ``<svg>`` element that says what it shows."""
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
