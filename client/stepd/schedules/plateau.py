"""A rate that falls when a metric stops improving.

This one is not a function of the step: what it gives depends on the metrics that were reported. Whoever runs it keeps
a `PlateauState` beside the run, takes it from `observe` to `observe`, and asks `rate_after`. All of it is pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from stepd.schedules.base import Line, Schedule


class PlateauState(NamedTuple):
    """What is remembered of the metrics so far.

    Attributes:
        best: metric.
        bad: metrics since then that were not better.
        cooldown: metrics that still count for nothing after a reduction.
        reductions: of the rate, since the base rate was set.
    """

    best: float
    bad: int = 0
    cooldown: int = 0
    reductions: int = 0


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """lr * factor after more than `patience` metrics in a row that were not better than the best. torch:
    ReduceLROnPlateau.

    Better is lower, with `mode="max"` higher, by more than `threshold`: relative to the best, or with
    `threshold_mode="abs"` by itself. After a reduction `cooldown` metrics count for nothing. The rate does not fall
    below `min_lr`, and not by less than `eps`. A metric that is not a number is not better.

    Metrics come by `Worker.report`, which says which of them counts.
    """

    mode: Literal["min", "max"] = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8

    def check(self) -> None:
        super().check()
        self.require(0 <= self.factor < 1, "factor", self.factor, "in [0, 1)")
        self.require_not_negative("patience", "cooldown", "min_lr", "eps")

    def line(self, step: int) -> Line:
        """The group's own rate, as long as no metric has been reported."""
        return Line(1.0, 0.0)

    def start(self) -> PlateauState:
        """The state before the first metric."""
        return PlateauState(best=math.inf if self.mode == "min" else -math.inf)

    def observe(self, state: PlateauState, metric: float) -> PlateauState:
        """The state after one more metric."""
        best, bad, cooldown, reductions = state
        if self._better(metric, best):
            best, bad = metric, 0
        else:
            bad += 1
        if cooldown > 0:
            cooldown -= 1
            bad = 0
        if bad > self.patience:
            bad, cooldown, reductions = 0, self.cooldown, reductions + 1
        return PlateauState(best, bad, cooldown, reductions)

    def rate_after(self, state: PlateauState, base: float) -> float:
        """The rate of a group whose own is `base`.

        A rate set in the middle is a new base, with the other groups' present rates as theirs, and with
        `state._replace(reductions=0)`.
        """
        rate = base
        for _ in range(state.reductions):
            lower = max(rate * self.factor, self.min_lr)
            if not rate - lower > self.eps:
                break  # and so it would stay in all others
            rate = lower
        return rate

    def _better(self, metric: float, best: float) -> bool:
        if self.threshold_mode == "rel":
            return metric < best * (1 - self.threshold) if self.mode == "min" else metric > best * (1 + self.threshold)
        return metric < best - self.threshold if self.mode == "min" else metric > best + self.threshold
