"""torch's cosines, which rise again. For one that goes down and stays there, after a warm-up: Cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stepd.schedules.base import Line, Schedule


@dataclass(frozen=True)
class CosineAnnealing(Schedule):
    """Down to `eta_min` in T_max steps, up again in as many, and so on. torch: CosineAnnealingLR.

    eta_min + (lr - eta_min) * (1 + cos(pi * s / T_max)) / 2
    """

    # torch's names: what is written there in capitals is so here.
    T_max: int
    eta_min: float = 0.0

    def check(self) -> None:
        super().check()
        self.require(self.T_max >= 1, "T_max", self.T_max, ">= 1")
        self.require_not_negative("eta_min")

    def line(self, step: int) -> Line:
        return _line(step % (2 * self.T_max), self.T_max, self.eta_min)


@dataclass(frozen=True)
class CosineWarmRestarts(Schedule):
    """Down to `eta_min` in T_0 steps and at once back: Loshchilov & Hutter, 2017, https://arxiv.org/abs/1608.03983

    Each descent takes T_mult times as many steps as the one before. torch: CosineAnnealingWarmRestarts.
    """

    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def check(self) -> None:
        super().check()
        self.require(self.T_0 >= 1, "T_0", self.T_0, ">= 1")
        self.require(self.T_mult >= 1, "T_mult", self.T_mult, ">= 1")
        self.require_not_negative("eta_min")

    def line(self, step: int) -> Line:
        steps = self.T_0
        if self.T_mult == 1:
            step %= steps
        while step >= steps:
            step -= steps
            steps *= self.T_mult
        return _line(step, steps, self.eta_min)

    def follow(self, step: int, before: Line) -> Line:
        """torch's does not go on from the present rate."""
        return self.line(step)


def _line(step: int, steps: int, eta_min: float) -> Line:
    left = (1 + math.cos(math.pi * step / steps)) / 2
    return Line(left, eta_min * (1 - left))
