"""Horizontal bars in groups, as SVG in the looks of stepd's charts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stepd.chart import LEFT, WIDTH, label, page, segment, text

NAMES: Final = 230  # room for the names of groups
VALUES: Final = 70  # room for values behind the bars
BAR: Final = 12
GAP: Final = 12
TOP: Final = 100
BOTTOM: Final = 40
TICKS: Final = 5


@dataclass(frozen=True)
class Group:
    """Bars of one name.

    Attributes:
        name: in front of them.
        values: of each bar; None leaves its place empty.
        ours: drawn in colour.
    """

    name: str
    values: tuple[float | None, ...]
    ours: bool


def render(groups: Sequence[Group], kinds: Sequence[str], *, title: str, subtitle: str, most: float) -> str:
    """The chart.

    Args:
        groups: from top to bottom.
        kinds: what each bar of a group is.
        title: of the chart.
        subtitle: below it.
        most: where the axis ends; bars that are longer are drawn broken off, with their value behind them.
    """
    left, right = LEFT + NAMES, WIDTH - VALUES
    step = len(kinds) * BAR + GAP
    height = TOP + len(groups) * step + BOTTOM
    bottom = height - BOTTOM

    def across(value: float) -> float:
        return left + (right - left) * min(value, most) / most

    parts = []
    for tick in (most * i / TICKS for i in range(TICKS + 1)):
        parts.append(segment(across(tick), TOP - 8, across(tick), bottom, "grid"))
        parts.append(text(across(tick), bottom + 17, label(tick), "tick", anchor="middle"))
    for i, kind in enumerate(kinds):
        x = left + 150 * i
        parts.append(f'<rect class="fill-b" x="{x}" y="74" width="12" height="9"{_paler(i)}/>')
        parts.append(text(x + 18, 83, kind, "tick"))
    for row, group in enumerate(groups):
        top = TOP + row * step
        parts.append(text(left - 8, top + (step - GAP) / 2 + 3, group.name, "tick", anchor="end"))
        for i, value in enumerate(group.values):
            if value is None:
                continue
            y = top + i * BAR
            colour = "fill-a" if group.ours else "fill-b"
            parts.append(
                f'<rect class="{colour}" x="{left}" y="{y}" width="{across(value) - left:.1f}" height="{BAR - 2}"'
                f"{_paler(i)}/>"
            )
            broken = " …" if value > most else ""
            parts.append(text(across(value) + 5, y + 9, broken + f"{value:.3f}", "tick"))
    return page(parts, height, title=title, subtitle=subtitle)


def _paler(place: int) -> str:
    return f' opacity="{1 - 0.45 * min(place, 1)}"' if place else ""
