"""Adam with its early steps put right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, blend, blend_square, turn_and_decay

# Below this length of the average its variance has no use: torch's number, 4 in the paper.
_LENGTH_MIN = 5.0


@dataclass(frozen=True)
class RAdam(Rule):
    """RAdam: Liu et al., 2020, https://arxiv.org/abs/1908.03265

        m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
        c = 2 / (1 - b2) - 1             n = c - 2 t b2^t / (1 - b2^t)
        r = sqrt((n - 4) (n - 2) c / ((c - 4) (c - 2) n))
        p = p - lr * m / (1 - b1^t) * r * sqrt(1 - b2^t) / (sqrt(v) + eps)      if n > 5
        p = p - lr * m / (1 - b1^t)                                             otherwise

    `weight_decay` is added to the gradient, or with `decoupled_weight_decay` first p = p (1 - lr * weight_decay).
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("eps", "weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("exp_avg"), Buffer("exp_avg_sq"))

    def update(self, block: Block, at: Moment) -> None:
        decay = self.weight_decay
        if decay and self.decoupled_weight_decay:
            np.multiply(block.p, 1 - at.lr * decay, out=block.p)
            decay = 0.0
        turn_and_decay(block, maximize=self.maximize, weight_decay=decay)
        p, g, (m, v), (t,) = block.p, block.g, block.buffers, block.scratch
        b1, b2 = self.betas
        blend(m, g, b1, t)
        blend_square(v, g, b2, t)
        rate = at.lr / (1 - b1**at.step)
        rectified = self._rectified(at.step)
        if rectified is None:
            np.multiply(m, rate, out=t)
        else:
            np.sqrt(v, out=t)
            t += self.eps
            np.divide(m, t, out=t)
            t *= rate * rectified
        p -= t

    def _rectified(self, step: int) -> float | None:
        """r * sqrt(1 - b2^t), None where the average is too short."""
        b2 = self.betas[1]
        longest = 2 / (1 - b2) - 1
        correction = 1 - b2**step
        length = longest - 2 * step * b2**step / correction
        if length <= _LENGTH_MIN:
            return None
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return math.sqrt(r) * math.sqrt(correction)
