"""Rates that go up and down between limits of their own, with the momentum going the other way.

The group's own rate does not count here, and a rate cannot be set in the middle of these schedules. The momentum takes
the place of the rule's `momentum` or of the first of its `betas`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

from stepd.schedules.base import Line, Schedule, power


@dataclass(frozen=True)
class _Absolute(Schedule):
    """A schedule that ignores the group's rate."""

    @abstractmethod
    def _rate(self, step: int) -> float:
        """The rate at a step."""

    def line(self, step: int) -> Line:
        return Line(0.0, self._rate(step))

    def follow(self, step: int, before: Line) -> Line:
        return self.line(step)


@dataclass(frozen=True)
class OneCycle(_Absolute):
    """Up, down, and far down: Smith & Topin, 2018, https://arxiv.org/abs/1708.07120. torch: OneCycleLR.

    From max_lr / div_factor up to max_lr within `pct_start` of the steps, then down to
    max_lr / div_factor / final_div_factor at step total_steps - 1, or with `three_phase` first down to where it began,
    in as many steps as up. The momentum goes from max_momentum to base_momentum while the rate rises, and back.

    Where torch raises after `total_steps`, the rate stays at its end; at that step itself torch is one step past the
    end of its curve, and so is this, but never below 0.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: Literal["cos", "linear"] = "cos"
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def check(self) -> None:
        super().check()
        self.require_not_negative("max_lr")
        self.require(self.total_steps >= 1, "total_steps", self.total_steps, ">= 1")
        self.require(0 <= self.pct_start <= 1, "pct_start", self.pct_start, "in [0, 1]")
        _check_momenta(self, self.base_momentum, self.max_momentum)
        self.require(self.div_factor > 0, "div_factor", self.div_factor, "> 0")
        self.require(self.final_div_factor > 0, "final_div_factor", self.final_div_factor, "> 0")

    def _rate(self, step: int) -> float:
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        if step > self.total_steps:
            return last
        turns = (first, self.max_lr, first, last) if self.three_phase else (first, self.max_lr, last)
        return max(0.0, self._between(step, turns))

    def momentum(self, step: int) -> float | None:
        if not self.cycle_momentum:
            return None
        low, high = self.base_momentum, self.max_momentum
        if step > self.total_steps:
            return high
        momentum = self._between(step, (high, low, high, high) if self.three_phase else (high, low, high))
        return min(max(momentum, min(low, high)), max(low, high))

    def _between(self, step: int, turns: tuple[float, ...]) -> float:
        """The value at a step on a curve through these turning points."""
        up = self.pct_start * self.total_steps
        ends = [up - 1, 2 * up - 2, self.total_steps - 1] if self.three_phase else [up - 1, self.total_steps - 1]
        phase = next((i for i, end in enumerate(ends) if step <= end), len(ends) - 1)
        begin, end = ends[phase - 1] if phase else 0.0, ends[phase]
        done = (step - begin) / (end - begin) if end != begin else 1.0
        start, stop = turns[phase], turns[phase + 1]
        if self.anneal_strategy == "linear":
            return (stop - start) * done + start
        return stop + (start - stop) / 2 * (math.cos(math.pi * done) + 1)


@dataclass(frozen=True)
class Cyclic(_Absolute):
    """Triangles between base_lr and max_lr: Smith, 2017, https://arxiv.org/abs/1506.01186. torch: CyclicLR.

    Up in `step_size_up` steps, down in `step_size_down` (None: as many). "triangular2" halves the height with every
    cycle, "exp_range" multiplies it by gamma with every step. The momentum goes from max_momentum down to
    base_momentum while the rate rises, and back.
    """

    base_lr: float
    max_lr: float
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0
    cycle_momentum: bool = True
    base_momentum: float = 0.8
    max_momentum: float = 0.9

    def check(self) -> None:
        super().check()
        self.require_not_negative("base_lr", "max_lr")
        self.require(self.step_size_up >= 1, "step_size_up", self.step_size_up, ">= 1")
        down = self.step_size_down
        self.require(down is None or down >= 1, "step_size_down", down, ">= 1, or None")
        self.require(0 <= self.gamma <= 1, "gamma", self.gamma, "in [0, 1]")
        _check_momenta(self, self.base_momentum, self.max_momentum)

    def _rate(self, step: int) -> float:
        return self.base_lr + (self.max_lr - self.base_lr) * self._height(step)

    def momentum(self, step: int) -> float | None:
        if not self.cycle_momentum:
            return None
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self._height(step)

    def _height(self, step: int) -> float:
        """How far it is from base_lr to max_lr."""
        up = self.step_size_up
        total = up + (self.step_size_down or up)
        cycle, within = divmod(step, total)
        height = within / up if within <= up else (total - within) / (total - up)
        if self.mode == "triangular2":
            return height * power(0.5, cycle)
        elif self.mode == "exp_range":
            return height * power(self.gamma, step)
        return height


def _check_momenta(schedule: Schedule, base_momentum: float, max_momentum: float) -> None:
    schedule.require(0 <= base_momentum < 1, "base_momentum", base_momentum, "in [0, 1)")
    schedule.require(0 <= max_momentum < 1, "max_momentum", max_momentum, "in [0, 1)")
