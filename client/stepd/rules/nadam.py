"""Adam with Nesterov's momentum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, Scalar, blend, blend_square, turn_and_decay


@dataclass(frozen=True)
class NAdam(Rule):
    """NAdam: Dozat, 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ

        mu_t = b1 (1 - 0.96^(t * momentum_decay) / 2)            M = M * mu_t
        m = b1 m + (1 - b1) g                                    v = b2 v + (1 - b2) g^2
        p = p - lr * ((1 - mu_t) / (1 - M) * g + mu_t+1 / (1 - M * mu_t+1) * m) / (sqrt(v / (1 - b2^t)) + eps)

    `weight_decay` is added to the gradient, or with `decoupled_weight_decay` first p = p (1 - lr * weight_decay).
    M is a float32, as torch's is.
    """

    lr: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("eps", "weight_decay", "momentum_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("exp_avg"), Buffer("exp_avg_sq"))

    def scalars(self) -> tuple[Scalar, ...]:
        return (Scalar("mu_product", 1.0),)

    def advance(self, at: Moment) -> tuple[float, ...]:
        # torch multiplies two float32; only so do its state and ours stay the same, in double runs too.
        return (float(np.float32(at.scalars[0]) * np.float32(self._mu(at.step))),)

    def _mu(self, step: int) -> float:
        return self.betas[0] * (1 - 0.5 * math.pow(0.96, step * self.momentum_decay))

    def update(self, block: Block, at: Moment) -> None:
        decay = self.weight_decay
        if decay and self.decoupled_weight_decay:
            np.multiply(block.p, 1 - at.lr * decay, out=block.p)
            decay = 0.0
        turn_and_decay(block, maximize=self.maximize, weight_decay=decay)
        p, g, (m, v), (t,) = block.p, block.g, block.buffers, block.scratch
        b1, b2 = self.betas
        (product,) = self.advance(at)
        mu, mu_next = self._mu(at.step), self._mu(at.step + 1)
        blend(m, g, b1, t)
        blend_square(v, g, b2, t)
        np.sqrt(v, out=t)
        t *= 1 / math.sqrt(1 - b2**at.step)
        t += self.eps
        # Subtracted one after the other as in torch: their sum would round p once where torch rounds it twice, and that
        # alone is 1e-6 after a hundred steps in float32.
        g *= at.lr * (1 - mu) / (1 - product)
        g /= t
        p -= g
        np.multiply(m, at.lr * mu_next / (1 - product * mu_next), out=g)
        g /= t
        p -= g
