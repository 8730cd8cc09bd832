"""Rates that are multiplied: by a factor at every step, at some steps, or by one from a list."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from stepd.schedules.base import Line, Schedule, power


@dataclass(frozen=True)
class Exponential(Schedule):
    """lr * decay_rate^s. torch: ExponentialLR(gamma=decay_rate)."""

    decay_rate: float

    def check(self) -> None:
        super().check()
        self.require_not_negative("decay_rate")

    def line(self, step: int) -> Line:
        return Line(power(self.decay_rate, step), 0.0)


@dataclass(frozen=True)
class Step(Schedule):
    """lr * gamma^floor(s / step_size). torch: StepLR."""

    step_size: int
    gamma: float = 0.1

    def check(self) -> None:
        super().check()
        self.require(self.step_size >= 1, "step_size", self.step_size, ">= 1")
        self.require_not_negative("gamma")

    def line(self, step: int) -> Line:
        return Line(power(self.gamma, step // self.step_size), 0.0)


@dataclass(frozen=True)
class MultiStep(Schedule):
    """lr * gamma^(how many of the milestones are <= s); one that stands twice counts twice. torch: MultiStepLR."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def check(self) -> None:
        super().check()
        self.require(all(one >= 0 for one in self.milestones), "milestones", self.milestones, "a list, each >= 0")
        self.require_not_negative("gamma")

    def line(self, step: int) -> Line:
        return Line(power(self.gamma, bisect_right(sorted(self.milestones), step)), 0.0)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """lr * (1 - s / T)^power with T = `total_steps`, then 0. torch: PolynomialLR(total_iters=T)."""

    total_steps: int
    power: float = 1.0

    def check(self) -> None:
        super().check()
        self.require(self.total_steps >= 1, "total_steps", self.total_steps, ">= 1")
        self.require(self.power > 0, "power", self.power, "> 0")

    def line(self, step: int) -> Line:
        return Line(power(1 - min(step, self.total_steps) / self.total_steps, self.power), 0.0)


@dataclass(frozen=True)
class FromList(Schedule):
    """lr * rates[s], and from the end of the list on lr * its last. torch: LambdaLR(lambda s: rates[s]).

    For rates that are not relative to the group's own, give the group lr=1.
    """

    rates: tuple[float, ...]

    def check(self) -> None:
        super().check()
        expected = "at least one number, each >= 0"
        self.require(bool(self.rates) and all(rate >= 0 for rate in self.rates), "rates", self.rates, expected)

    def line(self, step: int) -> Line:
        return Line(self.rates[min(step, len(self.rates) - 1)], 0.0)
