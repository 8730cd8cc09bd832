"""Rates that shrink with all that has been."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, turn_and_decay


@dataclass(frozen=True)
class Adagrad(Rule):
    """Adagrad: Duchi, Hazan & Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html

        s = s + g^2
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    `weight_decay` is added to the gradient; s begins at `initial_accumulator_value`.
    """

    lr: float = 1e-2
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_not_negative("lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("sum", self.initial_accumulator_value),)

    def update(self, block: Block, at: Moment) -> None:
        turn_and_decay(block, maximize=self.maximize, weight_decay=self.weight_decay)
        p, g, (s,), (t,) = block.p, block.g, block.buffers, block.scratch
        np.multiply(g, g, out=t)
        s += t
        np.sqrt(s, out=t)
        t += self.eps
        g /= t
        g *= at.lr / (1 + (at.step - 1) * self.lr_decay)
        p -= g
