"""Adam with a second moment that moves evenly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, blend, turn_and_decay


@dataclass(frozen=True)
class Yogi(Rule):
    """Yogi: Zaheer et al., 2018, https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization

        m = b1 m + (1 - b1) g            v = v - (1 - b2) sign(v - g^2) g^2
        p = p - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)

    `weight_decay` is added to the gradient. The paper has no corrections by 1 - b^t; they are here because every
    implementation in use has them, and both moments begin at `initial_accumulator_value`, as optax's do.
    """

    scratch = 2

    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-3
    weight_decay: float = 0.0
    initial_accumulator_value: float = 1e-6
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("eps", "weight_decay", "initial_accumulator_value")

    def buffers(self) -> tuple[Buffer, ...]:
        initial = self.initial_accumulator_value
        return (Buffer("exp_avg", initial), Buffer("exp_avg_sq", initial))

    def update(self, block: Block, at: Moment) -> None:
        turn_and_decay(block, maximize=self.maximize, weight_decay=self.weight_decay)
        p, g, (m, v), (t, u) = block.p, block.g, block.buffers, block.scratch
        b1, b2 = self.betas
        blend(m, g, b1, t)
        np.multiply(g, g, out=g)
        np.subtract(v, g, out=t)
        np.sign(t, out=u)  # in place it takes eight times as long
        u *= g
        u *= 1 - b2
        v -= u
        np.sqrt(v, out=t)
        t *= 1 / math.sqrt(1 - b2**at.step)
        t += self.eps
        np.divide(m, t, out=t)
        t *= at.lr / (1 - b1**at.step)
        p -= t
