"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule


@dataclass(frozen=True)
class SGD(Rule):
    """SGD, with momentum if asked for: Sutskever et al., 2013, https://proceedings.mlr.press/v28/sutskever13.html

        g = g + weight_decay * p
        b = momentum * b + (1 - dampening) * g        b = g in the first step
        p = p - lr * b                                p = p - lr * (g + momentum * b) with `nesterov`

    As in torch, the rate stands outside of the momentum, and the first step is not dampened.
    """

    lr: float = 1e-3
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_not_negative("momentum", "weight_decay")
        if self.nesterov:
            self.require(self.momentum > 0, "momentum", self.momentum, "> 0 with nesterov")
            self.require(self.dampening == 0, "dampening", self.dampening, "0 with nesterov")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("momentum_buffer"),) if self.momentum else ()

    def update(self, block: Block, at: Moment) -> None:
        p, g, (t,) = block.p, block.g, block.scratch
        if self.maximize:
            np.negative(g, out=g)
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=t)
            g += t
        if self.momentum:
            (b,) = block.buffers
            if at.step == 1:
                b[...] = g
            else:
                b *= self.momentum
                if self.dampening:
                    np.multiply(g, 1 - self.dampening, out=t)
                    b += t
                else:
                    b += g
            if self.nesterov:
                np.multiply(b, self.momentum, out=t)
                g += t
            else:
                g = b
        np.multiply(g, at.lr, out=t)
        p -= t
