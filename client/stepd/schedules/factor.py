"""A factor that ends: torch's LinearLR and ConstantLR, mostly parts of Sequential and Chained."""

from __future__ import annotations

from dataclasses import dataclass

from stepd.schedules.base import Line, Schedule


@dataclass(frozen=True)
class LinearFactor(Schedule):
    """lr times a factor that goes in a straight line from `start_factor` to `end_factor` in `total_iters` steps.

    torch: LinearLR. Unlike `Warmup` it has reached the full rate one step later, at step `total_iters`.
    """

    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: int = 5

    def check(self) -> None:
        super().check()
        self.require(0 < self.start_factor <= 1, "start_factor", self.start_factor, "in (0, 1]")
        self.require(0 <= self.end_factor <= 1, "end_factor", self.end_factor, "in [0, 1]")
        self.require(self.total_iters >= 1, "total_iters", self.total_iters, ">= 1")

    def line(self, step: int) -> Line:
        done = min(step, self.total_iters) / self.total_iters
        return Line(self.start_factor + (self.end_factor - self.start_factor) * done, 0.0)


@dataclass(frozen=True)
class ConstantFactor(Schedule):
    """lr * factor for `total_iters` steps, then lr. torch: ConstantLR."""

    factor: float = 1 / 3
    total_iters: int = 5

    def check(self) -> None:
        super().check()
        self.require(0 <= self.factor <= 1, "factor", self.factor, "in [0, 1]")
        self.require_not_negative("total_iters")

    def line(self, step: int) -> Line:
        return Line(self.factor if step < self.total_iters else 1.0, 0.0)
