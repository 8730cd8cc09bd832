"""Steps in units of the parameter itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, blend_square, turn_and_decay


@dataclass(frozen=True)
class Adadelta(Rule):
    """Adadelta: Zeiler, 2012, https://arxiv.org/abs/1212.5701

        v = rho v + (1 - rho) g^2
        d = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho u + (1 - rho) d^2
        p = p - lr * d

    `weight_decay` is added to the gradient. The paper's own rate is 1.
    """

    scratch = 2

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: float = 0.0
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require(0 <= self.rho <= 1, "rho", self.rho, "in [0, 1]")
        self.require_not_negative("eps", "weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("square_avg"), Buffer("acc_delta"))

    def update(self, block: Block, at: Moment) -> None:
        turn_and_decay(block, maximize=self.maximize, weight_decay=self.weight_decay)
        p, g, (v, u), (t, s) = block.p, block.g, block.buffers, block.scratch
        blend_square(v, g, self.rho, t)
        np.add(u, self.eps, out=t)
        np.add(v, self.eps, out=s)
        t /= s
        np.sqrt(t, out=t)
        g *= t
        blend_square(u, g, self.rho, t)
        g *= at.lr
        p -= g
