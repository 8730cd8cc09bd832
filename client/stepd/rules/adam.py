"""The family of Adam."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Array, Block, Buffer, Moment, Rule


@dataclass(frozen=True)
class Adam(Rule):
    """Adam: Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980; AMSGrad: Reddi et al., 2018.

        m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
        p = p - lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    `weight_decay` is added to the gradient. With `amsgrad`, sqrt is of the largest v so far.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("eps", "weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        moments = (Buffer("exp_avg"), Buffer("exp_avg_sq"))
        return (*moments, Buffer("max_exp_avg_sq")) if self.amsgrad else moments

    def update(self, block: Block, at: Moment) -> None:
        p, g, (t,) = block.p, block.g, block.scratch
        if self.maximize:
            np.negative(g, out=g)
        self._decay(p, g, t, at.lr)
        m, v = block.buffers[:2]
        b1, b2 = self.betas
        np.multiply(g, g, out=t)
        t *= 1 - b2
        v *= b2
        v += t
        # In place of torch's m + (1 - b1) (g - m): g is scaled where it lies, and passes over one array are cheap.
        g *= 1 - b1
        m *= b1
        m += g
        if self.amsgrad:
            v = np.maximum(block.buffers[2], v, out=block.buffers[2])
        # sqrt(1 - b2^t) is moved from under sqrt(v) into eps and the rate: one pass less over the block.
        root = math.sqrt(1 - b2**at.step)
        np.sqrt(v, out=t)
        t += self.eps * root
        np.divide(m, t, out=t)
        t *= at.lr * root / (1 - b1**at.step)
        p -= t

    def _decay(self, p: Array, g: Array, t: Array, lr: float) -> None:
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=t)
            g += t


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101.

    First p = p (1 - lr * weight_decay), then the step of Adam.
    """

    weight_decay: float = 0.01

    def _decay(self, p: Array, g: Array, t: Array, lr: float) -> None:
        if self.weight_decay:
            p *= 1 - lr * self.weight_decay
