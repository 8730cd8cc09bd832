"""Line charts as SVG: panels one above the other that share the x axis, as for loss, norm and rate over the steps.

A pure function of its data with no dependency, so that a fleet's pictures need no plotting library.
The colours follow the reader's light or dark theme where the viewer supports that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

# --- Data -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of a panel.

    Attributes:
        x: ascending.
        y: as many. A value that cannot be drawn (not finite, or not above 0 on a logarithmic axis) leaves a gap.
        faint: drawn thin behind the others and without its final value: raw values behind their trend.
    """

    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line with a label: a limit, a target."""

    value: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        title: what is shown.
        unit: of the y axis; may be empty.
        lines: in the order of drawing; faint ones are drawn first.
        log: a logarithmic y axis.
        level: a line to compare with.
    """

    title: str
    unit: str
    lines: tuple[Line, ...]
    log: bool = False
    level: Level | None = None


def render(
    panels: Sequence[Panel], *, title: str, subtitle: str = "", x_label: str = "step", log_x: bool = False
) -> str:
    """The chart as one SVG document."""
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    x_axis = _x_axis(panels, log=log_x)
    body = []
    for index, panel in enumerate(panels):
        top = TOP + index * (PANEL + GAP)
        body += _panel(panel, x_axis, top, COLOURS[index % len(COLOURS)], last=index == len(panels) - 1)
    body.append(text((LEFT + RIGHT) / 2, height - 14, x_label, "note", anchor="middle"))
    return page(body, height, title=title, subtitle=subtitle)


def page(body: Iterable[str], height: int, *, title: str, subtitle: str = "") -> str:
    """An SVG document as wide as all are, in their looks."""
    head = [
        f'<rect class="page" width="{WIDTH}" height="{height}" rx="8"/>',
        text(LEFT, 34, title, "title"),
        text(LEFT, 55, subtitle, "note"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{FONT}">\n<title>{escape(title)}</title>\n<desc>{escape(subtitle)}</desc>\n'
        f"<style>{STYLE}</style>\n" + "\n".join([*head, *body]) + "\n</svg>\n"
    )


# --- Looks (pixels) ---------------------------------------------------------------------------------------------

WIDTH: Final = 880
TOP: Final = 100
BOTTOM: Final = 54
LEFT: Final = 74
RIGHT: Final = WIDTH - 88  # room for the final values
PANEL: Final = 150
GAP: Final = 50
FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
# Points kept for each line: about one for a pixel, and what lies between two of them cannot be seen.
POINTS_MAX: Final = 4 * ((RIGHT - LEFT) // 4)
# Names of the style's classes, a panel each.
COLOURS: Final = ("a", "b", "c")
STYLE: Final = """
.page{fill:#ffffff}.frame{stroke:#c9d1d9;fill:none}.grid{stroke:#eaeef2}
.title{font-size:18px;font-weight:600;fill:#1f2328}.head{font-size:13px;font-weight:600;fill:#1f2328}
.note{font-size:12px;fill:#59636e}.tick{font-size:11px;fill:#59636e}.value{font-size:12px;font-weight:600}
.level{stroke:#8c959f;stroke-dasharray:5 4}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.faint{fill:none;stroke-width:1;opacity:.35}
.a{stroke:#0969da}.b{stroke:#bc4c00}.c{stroke:#1a7f37}.fill-a{fill:#0969da}.fill-b{fill:#bc4c00}.fill-c{fill:#1a7f37}
@media (prefers-color-scheme:dark){
.page{fill:#0d1117}.frame{stroke:#3d444d}.grid{stroke:#21262d}.title,.head{fill:#f0f6fc}.note,.tick{fill:#9198a1}
.level{stroke:#656c76}.a{stroke:#4493f8}.b{stroke:#f0883e}.c{stroke:#3fb950}
.fill-a{fill:#4493f8}.fill-b{fill:#f0883e}.fill-c{fill:#3fb950}}
"""


# --- Axes -------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """An axis of data values.

    Attributes:
        low: the value at its start.
        high: the value at its end; above `low`.
        ticks: values that are labelled, within the two.
        log: logarithmic.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies: 0 at the start, 1 at the end."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


# Below it numbers lose digits.
_NOTHING: Final = 1e-300


def linear_axis(values: Iterable[float], *, target: int = 5) -> Axis:
    """An axis from tick to tick around the values, with ticks at multiples of 1, 2 or 5 times a power of ten."""
    # The smallest numbers there are cannot be divided among ticks.
    drawn = [value if abs(value) > _NOTHING else 0.0 for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(drawn), max(drawn)
    if low == high:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / target
    power = 10.0 ** math.floor(math.log10(rough))
    tick = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / tick + 1e-9), math.ceil(high / tick - 1e-9)
    # Rounded to the digits that the tick has: 3 * 0.1 is 0.30000000000000004.
    digits = max(0, -math.floor(math.log10(tick)))
    ticks = tuple(round(count * tick, digits) for count in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def log_axis(values: Iterable[float]) -> Axis:
    """A logarithmic axis around the positive values, with ticks at powers of ten, or at 1, 2 and 5 times them."""
    drawn = [value for value in values if 0 < value < math.inf] or [0.1, 1.0]
    low, high = min(drawn), max(drawn)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    # The axis begins and ends at the marks next to the values.
    while len(marks) > 2 and marks[1] <= low:
        del marks[0]
    while len(marks) > 2 and marks[-2] >= high:
        del marks[-1]
    first, last = min(marks[0], low), max(marks[-1], high)
    if last / first > 1000:
        stride = math.ceil(len(powers) / 8)
        marks = [10.0**power for power in powers if power % stride == 0 and first <= 10.0**power <= last]
    return Axis(first, last, tuple(marks), log=True)


def label(value: float) -> str:
    """A number as short as a reader wants it: 0.003, 1,000, 2e-5."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _x_axis(panels: Sequence[Panel], *, log: bool) -> Axis:
    values = [x for panel in panels for line in panel.lines for x in line.x]
    if log:
        return log_axis(values)
    axis = linear_axis(values, target=8)
    drawn = [value for value in values if math.isfinite(value)]
    if not drawn or min(drawn) == max(drawn):
        return axis
    low, high = min(drawn), max(drawn)
    # The lines fill the width: the axis ends with the data, not with the next tick. But steps count from 1, and 0 reads
    # better.
    if low - axis.ticks[0] < (high - low) / 50:
        low = axis.ticks[0]
    return Axis(low, high, tuple(tick for tick in axis.ticks if low <= tick <= high))


def _y_axis(panel: Panel) -> Axis:
    values = [y for line in panel.lines for y in line.y]
    if panel.level:
        values.append(panel.level.value)
    if panel.log:
        return log_axis(values)
    # Rates and norms are sizes: without the zero a small change would look like a large one.
    return linear_axis([0.0, *values], target=4)


# --- Drawing ----------------------------------------------------------------------------------------------------


def _panel(panel: Panel, x_axis: Axis, top: float, colour: str, *, last: bool) -> list[str]:
    y_axis = _y_axis(panel)
    bottom = top + PANEL

    def across(x: float) -> float:
        return LEFT + (RIGHT - LEFT) * x_axis.place(x)

    def up(y: float) -> float:
        return bottom - PANEL * y_axis.place(y)

    parts = [text(LEFT, top - 10, panel.title, "head", extra=panel.unit)]
    for tick in y_axis.ticks:
        parts.append(segment(LEFT, up(tick), RIGHT, up(tick), "grid"))
        parts.append(text(LEFT - 8, up(tick) + 4, label(tick), "tick", anchor="end"))
    for tick in x_axis.ticks:
        parts.append(segment(across(tick), top, across(tick), bottom, "grid"))
        if last:
            parts.append(text(across(tick), bottom + 17, label(tick), "tick", anchor="middle"))
    parts.append(f'<rect class="frame" x="{LEFT}" y="{top}" width="{RIGHT - LEFT}" height="{PANEL}"/>')
    if panel.level:
        height = up(panel.level.value)
        parts.append(segment(LEFT, height, RIGHT, height, "level"))
        above = height - 5 if height - top > 16 else height + 14
        parts.append(text(RIGHT - 6, above, panel.level.label, "tick", anchor="end"))
    for line in sorted(panel.lines, key=lambda line: not line.faint):
        parts += _line(line, panel, across, up, colour)
    return parts


def _line(
    line: Line, panel: Panel, across: Callable[[float], float], up: Callable[[float], float], colour: str
) -> list[str]:
    runs = _runs(line, log=panel.log)
    kind = "faint" if line.faint else "line"
    parts = []
    for run in runs:
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in downsample(run))
        parts.append(f'<polyline class="{kind} {colour}" points="{points}"/>')
    if runs and not line.faint:
        x, y = runs[-1][-1]
        parts.append(f'<circle class="fill-{colour}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5"/>')
        parts.append(text(across(x) + 10, up(y) + 4, label(y), f"value fill-{colour}"))
    return parts


def _runs(line: Line, *, log: bool) -> list[list[tuple[float, float]]]:
    """The line in pieces without gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def downsample(points: Sequence[tuple[float, float]], most: int = POINTS_MAX) -> list[tuple[float, float]]:
    """At most so many of the points, and every peak among them.

    Points next to each other are put together, and of each set the first, the lowest, the highest and the last stay.
    """
    if len(points) <= most:
        return list(points)
    sets = most // 4
    kept: list[tuple[float, float]] = []
    for index in range(sets):
        together = range(index * len(points) // sets, (index + 1) * len(points) // sets)
        lowest = min(together, key=lambda at: points[at][1])
        highest = max(together, key=lambda at: points[at][1])
        kept += [points[at] for at in sorted({together[0], lowest, highest, together[-1]})]
    return kept


def segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of a class of the style."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, text: str, kind: str, *, anchor: str = "start", extra: str = "") -> str:
    """A line of text of a class of the style, with a note behind it."""
    note = f'<tspan class="note" font-weight="400" dx="8">{escape(extra)}</tspan>' if extra else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{note}</text>'
