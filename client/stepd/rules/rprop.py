"""Steps by the gradient's sign alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd.rules.base import Block, Buffer, Moment, Rule


@dataclass(frozen=True)
class Rprop(Rule):
    """Resilient backpropagation: Riedmiller & Braun, 1993, https://doi.org/10.1109/ICNN.1993.298623

        s = clamp(s * etas[1], step_sizes)                where g has the sign of the step before
        s = clamp(s * etas[0], step_sizes), g = 0         where it has turned
        p = p - s * sign(g)

    For whole batches: noise turns signs. The rate counts in the first step only, where s = lr, as in torch.
    """

    scratch = 2

    lr: float = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require(0 < self.etas[0] < 1, "etas[0]", self.etas[0], "in (0, 1)")
        self.require(self.etas[1] > 1, "etas[1]", self.etas[1], "> 1")
        smallest, largest = self.step_sizes
        self.require(0 <= smallest <= largest, "step_sizes", self.step_sizes, "0 <= the smallest <= the largest")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("prev"), Buffer("step_size", self.lr))

    def update(self, block: Block, at: Moment) -> None:
        p, g, (before, size), (t, u) = block.p, block.g, block.buffers, block.scratch
        if self.maximize:
            np.negative(g, out=g)
        if at.step == 1:
            size[...] = at.lr
        # Two masks fit where one number of four bytes lay.
        same, turned = u.view(np.bool_)[: 2 * u.size].reshape(2, u.size)
        np.multiply(g, before, out=t)
        np.greater(t, 0, out=same)
        np.less(t, 0, out=turned)
        t[...] = 1
        np.copyto(t, self.etas[1], where=same)
        np.copyto(t, self.etas[0], where=turned)
        size *= t
        np.maximum(size, self.step_sizes[0], out=size)
        np.minimum(size, self.step_sizes[1], out=size)
        np.copyto(g, 0, where=turned)
        before[...] = g
        np.sign(g, out=t)
        t *= size
        p -= t
