"""Adam with rates by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Array, Block, Buffer, Moment, Reach, Rule, blend, blend_square
from stepd.rules.lars import excluded


@dataclass(frozen=True)
class LAMB(Rule):
    """LAMB: You et al., 2020, https://arxiv.org/abs/1904.00962

        m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
        r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * p
        p = p - lr * |p| / |r| * r

    The norms are of the whole tensor. Where one of them is zero, and for parameters whose name matches one of the
    globs in `exclude` (capitals count), p = p - lr * r.
    """

    reach = Reach.LAYERWISE
    scratch = 2

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.01
    exclude: tuple[str, ...] = ()
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_decays("betas")
        self.require_not_negative("eps", "weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("exp_avg"), Buffer("exp_avg_sq"))

    def measure(self, block: Block, at: Moment) -> tuple[Array, Array]:
        g, (m, v), (t, u) = block.g, block.buffers, block.scratch
        if self.maximize:
            np.negative(g, out=g)
        b1, b2 = self.betas
        # The moments of this step, in the order of `update`, but beside the buffers.
        np.multiply(g, g, out=t)
        t *= 1 - b2
        np.multiply(v, b2, out=u)
        u += t
        g *= 1 - b1
        np.multiply(m, b1, out=t)
        t += g
        return block.p, self._direction(block.p, m=t, v=u, r=g, step=at.step, root=u, decay=t)

    def update(self, block: Block, at: Moment) -> None:
        p, g, (m, v), (t, u) = block.p, block.g, block.buffers, block.scratch
        if self.maximize:
            np.negative(g, out=g)
        b1, b2 = self.betas
        blend(m, g, b1, t)
        blend_square(v, g, b2, t)
        r = self._direction(p, m=m, v=v, r=g, step=at.step, root=t, decay=u)
        r *= at.lr * self._trust(at)
        p -= r

    def _direction(self, p: Array, *, m: Array, v: Array, r: Array, step: int, root: Array, decay: Array) -> Array:
        """r of this step's moments, written into `r`; `root` may be `v`, and `decay` may be `m`."""
        np.sqrt(v, out=root)
        root *= 1 / math.sqrt(1 - self.betas[1] ** step)
        root += self.eps
        np.divide(m, root, out=r)
        r *= 1 / (1 - self.betas[0] ** step)
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=decay)
            r += decay
        return r

    def _trust(self, at: Moment) -> float:
        """What the rate is multiplied by."""
        p_norm, r_norm = at.norms
        if p_norm == 0 or r_norm == 0 or excluded(at.name, self.exclude):
            return 1.0
        return p_norm / r_norm
