"""Rates by layer, from the size of its parameters and of its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from stepd.rules.base import Array, Block, Buffer, Moment, Reach, Rule


@dataclass(frozen=True)
class LARS(Rule):
    """LARS: You, Gitman & Ginsburg, 2017, https://arxiv.org/abs/1708.03888

        rate = lr * trust_coefficient * |p| / (|g| + weight_decay * |p|)        `variant="paper"`
        rate = lr * trust_coefficient * |p| / |g|                               `variant="plain"`
        v = momentum * v + rate * (g + weight_decay * p)
        p = p - v                                          p = p - (momentum * v + rate * (...)) with `nesterov`

    The norms are of the whole tensor, of the gradient as it is before the decay is added. Where one of them is zero,
    and for parameters whose name matches one of the globs in `exclude` (capitals count), rate = lr. The velocity has
    taken the rate in, as in the paper: a change of the rate does not change what is under way.
    """

    reach = Reach.LAYERWISE

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 0.001
    exclude: tuple[str, ...] = ("*bias*", "*norm*")
    variant: Literal["paper", "plain"] = "paper"
    nesterov: bool = False
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_not_negative("momentum", "weight_decay")
        self.require(self.trust_coefficient > 0, "trust_coefficient", self.trust_coefficient, "> 0")
        if self.nesterov:
            self.require(self.momentum > 0, "momentum", self.momentum, "> 0 with nesterov")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("momentum_buffer"),) if self.momentum else ()

    def measure(self, block: Block, at: Moment) -> tuple[Array, Array]:
        return block.p, block.g

    def update(self, block: Block, at: Moment) -> None:
        p, g, (t,) = block.p, block.g, block.scratch
        rate = at.lr * self._trust(at)
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=t)
            # The direction of ascent is turned, the decay is not.
            if self.maximize:
                np.subtract(t, g, out=g)
            else:
                g += t
            g *= rate
        else:
            g *= -rate if self.maximize else rate
        if self.momentum:
            (v,) = block.buffers
            v *= self.momentum
            v += g
            if self.nesterov:
                np.multiply(v, self.momentum, out=t)
                g += t
            else:
                g = v
        p -= g

    def _trust(self, at: Moment) -> float:
        """What the rate is multiplied by."""
        p_norm, g_norm = at.norms
        if p_norm == 0 or g_norm == 0 or excluded(at.name, self.exclude):
            return 1.0
        if self.variant == "paper":
            g_norm += self.weight_decay * p_norm
        return self.trust_coefficient * p_norm / g_norm


def excluded(name: str, globs: tuple[str, ...]) -> bool:
    """Whether a parameter's name matches one of the globs."""
    return any(fnmatchcase(name, glob) for glob in globs)
