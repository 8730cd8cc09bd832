"""Steps by the sign of the momentum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, blend


@dataclass(frozen=True)
class Lion(Rule):
    """Lion: Chen et al., 2023, https://arxiv.org/abs/2302.06675

        p = p - lr * (sign(b1 m + (1 - b1) g) + weight_decay * p)
        m = b2 m + (1 - b2) g

    Every element moves by lr: its authors use a rate three to ten times smaller than AdamW's, and as much more decay.
    """

    scratch = 2

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("exp_avg"),)

    def update(self, block: Block, at: Moment) -> None:
        p, g, (m,), (t, u) = block.p, block.g, block.buffers, block.scratch
        if self.maximize:
            np.negative(g, out=g)
        b1, b2 = self.betas
        np.multiply(m, b1, out=u)
        np.multiply(g, 1 - b1, out=t)
        u += t
        np.sign(u, out=t)  # in place it takes eight times as long
        if self.weight_decay:
            # Not p *= 1 - lr * weight_decay: in float32 that factor's own rounding adds up, at such small rates.
            np.multiply(p, self.weight_decay, out=u)
            t += u
        t *= at.lr
        p -= t
        blend(m, g, b2, t)
