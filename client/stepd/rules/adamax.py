"""Adam by the largest gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, blend, turn_and_decay


@dataclass(frozen=True)
class Adamax(Rule):
    """Adamax: Kingma & Ba, 2015, section 7.1, https://arxiv.org/abs/1412.6980

        m = b1 m + (1 - b1) g            u = max(b2 u, |g| + eps)
        p = p - lr / (1 - b1^t) * m / u

    `weight_decay` is added to the gradient. As in torch, eps stands within the maximum.
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("eps", "weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("exp_avg"), Buffer("exp_inf"))

    def update(self, block: Block, at: Moment) -> None:
        turn_and_decay(block, maximize=self.maximize, weight_decay=self.weight_decay)
        p, g, (m, u), (t,) = block.p, block.g, block.buffers, block.scratch
        b1, b2 = self.betas
        blend(m, g, b1, t)
        np.abs(g, out=g)
        g += self.eps
        u *= b2
        np.maximum(u, g, out=u)
        np.divide(m, u, out=t)
        t *= at.lr / (1 - b1**at.step)
        p -= t
