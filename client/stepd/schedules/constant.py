"""No schedule."""

from __future__ import annotations

from dataclasses import dataclass

from stepd.schedules.base import Line, Schedule


@dataclass(frozen=True)
class Constant(Schedule):
    """The group's own rate at every step."""

    def line(self, step: int) -> Line:
        return Line(1.0, 0.0)
