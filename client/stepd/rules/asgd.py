"""Stochastic gradient descent that averages its way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Array, Block, Buffer, Moment, Rule, Scalar, turn_and_decay


@dataclass(frozen=True)
class ASGD(Rule):
    """Averaged SGD: Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046; the rates: Bottou, 2010.

        p = p (1 - lambd * eta) - eta * g
        ax = ax + mu * (p - ax)
        eta = lr / (1 + lambd * lr * t)^alpha            mu = 1 / max(1, t - t0)          for the next step

    `weight_decay` is added to the gradient. What is trained is p; ax is the average, see `average`. As in torch,
    the first step has eta = lr, a rate counts from the step after, and eta and mu are kept as float32.
    """

    averages = True

    lr: float = 1e-2
    lambd: float = 1e-4
    alpha: float = 0.75
    t0: float = 1e6
    weight_decay: float = 0.0
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_not_negative("lambd", "weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("ax"),)

    def scalars(self) -> tuple[Scalar, ...]:
        # torch's eta is the rate of the first step; `_now` puts it in, since only then it is known.
        return (Scalar("eta", self.lr), Scalar("mu", 1.0))

    def advance(self, at: Moment) -> tuple[float, ...]:
        eta = at.lr / (1 + self.lambd * at.lr * at.step) ** self.alpha
        return float(np.float32(eta)), float(np.float32(1 / max(1.0, at.step - self.t0)))

    def _now(self, at: Moment) -> tuple[float, float]:
        eta, mu = at.scalars
        return (float(np.float32(at.lr)) if at.step == 1 else eta), mu

    def update(self, block: Block, at: Moment) -> None:
        turn_and_decay(block, maximize=self.maximize, weight_decay=self.weight_decay)
        p, g, (ax,), (t,) = block.p, block.g, block.buffers, block.scratch
        eta, mu = self._now(at)
        p *= 1 - self.lambd * eta
        g *= eta
        p -= g
        if mu == 1:
            ax[...] = p
        else:
            np.subtract(p, ax, out=t)
            t *= mu
            ax += t

    def average(self, block: Block, step: int, out: Array) -> None:
        out[...] = block.buffers[0] if step else block.p
