"""The gradient in units of its own recent size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule, blend, blend_square, turn_and_decay


@dataclass(frozen=True)
class RMSprop(Rule):
    """RMSprop: Hinton, 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf

        v = alpha v + (1 - alpha) g^2
        d = sqrt(v) + eps                     with `centered`: a = alpha a + (1 - alpha) g, d = sqrt(v - a^2) + eps
        p = p - lr * g / d                    with `momentum`: b = momentum b + g / d, p = p - lr * b

    `weight_decay` is added to the gradient. The centered form: Graves, 2013, https://arxiv.org/abs/1308.0850;
    where rounding makes v - a^2 negative, torch's p becomes NaN, and here d is eps.
    """

    lr: float = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require_not_negative("alpha", "eps", "weight_decay", "momentum")

    def buffers(self) -> tuple[Buffer, ...]:
        momentum = (Buffer("momentum_buffer"),) if self.momentum else ()
        centered = (Buffer("grad_avg"),) if self.centered else ()
        return (Buffer("square_avg"), *momentum, *centered)

    def update(self, block: Block, at: Moment) -> None:
        turn_and_decay(block, maximize=self.maximize, weight_decay=self.weight_decay)
        p, g, (v, *others), (t,) = block.p, block.g, block.buffers, block.scratch
        blend_square(v, g, self.alpha, t)
        if self.centered:
            a = others[-1]
            blend(a, g, self.alpha, t)
            np.multiply(a, a, out=t)
            np.subtract(v, t, out=t)
            np.maximum(t, 0.0, out=t)
            np.sqrt(t, out=t)
        else:
            np.sqrt(v, out=t)
        t += self.eps
        g /= t
        if self.momentum:
            b = others[0]
            b *= self.momentum
            b += g
            g = b
        np.multiply(g, at.lr, out=t)
        p -= t
