"""Averages of parameters over steps, kept on the servers: EMA and SWA.

As torch.optim.swa_utils.AveragedModel: the first averaging copies the parameters, and every further one moves the
average towards them by a share, which is all that tells the two kinds apart. All parameters are averaged, also those
without a gradient in the step. Only applied steps count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from stepd.settings import Settings


@dataclass(frozen=True)
class EMA(Settings):
    """The exponential moving average: average = decay * average + (1 - decay) * parameters, after every step.

    Attributes:
        decay: at least 0 and less than 1; 0.999 remembers about the last 1000 steps.
    """

    decay: float

    def check(self) -> None:
        super().check()
        self.require(0 <= self.decay < 1, "decay", self.decay, "in [0, 1)")

    def counts(self, step: int) -> bool:
        """Whether the parameters after this step, counted from 1, go into the average."""
        return True

    def share(self, averaged: int) -> float:
        """The share of the parameters in the next average, when so many steps have gone into it before."""
        return 1 - self.decay if averaged else 1.0


@dataclass(frozen=True)
class SWA(Settings):
    """Stochastic weight averaging (Izmailov et al., 2018, https://arxiv.org/abs/1803.05407): the mean over some steps.

    Attributes:
        start: the first step to count, from 1; 0 counts from the beginning, without the initial parameters.
        every: from then on only every so many steps.
    """

    start: int
    every: int = 1

    def check(self) -> None:
        super().check()
        self.require_not_negative("start")
        self.require(self.every >= 1, "every", self.every, ">= 1")

    def counts(self, step: int) -> bool:
        """Whether the parameters after this step, counted from 1, go into the average."""
        return step >= self.start and (step - self.start) % self.every == 0

    def share(self, averaged: int) -> float:
        """The share of the parameters in the next average, when so many steps have gone into it before."""
        return 1 / (averaged + 1)


Average: TypeAlias = EMA | SWA
