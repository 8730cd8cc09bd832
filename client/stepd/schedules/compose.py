"""Schedules made of schedules."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

from stepd.schedules.base import Line, Schedule
from stepd.schedules.plateau import ReduceOnPlateau


@dataclass(frozen=True)
class Sequential(Schedule):
    """One schedule after another, each from its own step 0: schedules[i + 1] begins at milestones[i].

    torch: SequentialLR.
    """

    schedules: tuple[Schedule, ...]
    milestones: tuple[int, ...]

    def check(self) -> None:
        super().check()
        _check_parts(self, self.schedules)
        ascending = all(a < b for a, b in pairwise((0, *self.milestones)))
        count = len(self.schedules) - 1
        expected = f"{count} ascending steps > 0, one for each schedule but the first"
        self.require(len(self.milestones) == count and ascending, "milestones", self.milestones, expected)

    def line(self, step: int) -> Line:
        schedule, its_step = self._at(step)
        return schedule.line(its_step)

    def momentum(self, step: int) -> float | None:
        schedule, its_step = self._at(step)
        return schedule.momentum(its_step)

    def _at(self, step: int) -> tuple[Schedule, int]:
        """The schedule of a step, and the step as it counts."""
        index = bisect_right(self.milestones, step)
        return self.schedules[index], step - (self.milestones[index - 1] if index else 0)


@dataclass(frozen=True)
class Chained(Schedule):
    """All schedules at every step, each changing what the ones before it left. torch: ChainedScheduler.

    Of schedules that are multiples of the group's rate (no min_lr, no eta_min, nothing that reaches 0 and rises again)
    it is the product. Others go on from the rate of the step before, as torch's chainable schedulers do.
    """

    schedules: tuple[Schedule, ...]

    def check(self) -> None:
        super().check()
        _check_parts(self, self.schedules)

    def line(self, step: int) -> Line:
        return _walk(self.schedules).line(step)

    def momentum(self, step: int) -> float | None:
        momenta = [schedule.momentum(step) for schedule in self.schedules]
        return next((momentum for momentum in reversed(momenta) if momentum is not None), None)


class _Walk:
    """The lines of a chain, found by walking from step to step. Marks on the way keep any step near."""

    _STRIDE: Final = 256

    def __init__(self, schedules: tuple[Schedule, ...]) -> None:
        self._schedules = schedules
        self._marks: dict[int, Line] = {}  # at every multiple of the stride, as far as anybody has asked
        self._latest = (-1, Line(1.0, 0.0))

    def line(self, step: int) -> Line:
        at, line = self._latest
        if not step - self._STRIDE < at <= step and self._marks:
            mark = min(step // self._STRIDE, len(self._marks) - 1)
            at, line = mark * self._STRIDE, self._marks[mark]
        elif at > step:
            at, line = -1, Line(1.0, 0.0)
        while at < step:
            at += 1
            for schedule in self._schedules:
                line = schedule.follow(at, line)
            if at % self._STRIDE == 0:
                self._marks[at // self._STRIDE] = line
        self._latest = (at, line)
        return line


@lru_cache(maxsize=64)
def _walk(schedules: tuple[Schedule, ...]) -> _Walk:
    return _Walk(schedules)


def _check_parts(whole: Schedule, schedules: tuple[Schedule, ...]) -> None:
    whole.require(len(schedules) >= 1, "schedules", schedules, "at least one schedule")
    for schedule in schedules:
        # As in torch: it would have to be told of metrics through the one that holds it.
        whole.require(not isinstance(schedule, ReduceOnPlateau), "schedules", schedule, "without ReduceOnPlateau")
