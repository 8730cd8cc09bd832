"""Rules that need no schedule: the average over all steps takes the place of a falling rate.

There are three sequences: z, where the steps are taken; x, the average of z, for evaluation; and y, between the two,
where gradients are computed. Parameters are y: what workers pull is what they must compute gradients at (the mode
`train` of the authors' package). z is a buffer, and x follows from the two: see `average` (their mode `eval`).

    x = x + c (z - x)            y = b x + (1 - b) z            c = weight / (sum of all weights so far)
    weight = t^r * (the highest rate so far)^weight_lr_power

The authors' package, schedulefree 1.4.1, keeps t and the weights for a group, here each parameter has its own: they
are the same unless a parameter is without a gradient in some steps. Rates rise within `warmup_steps`; use either these
or a schedule that warms up.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stepd.rules.base import Array, Block, Buffer, Moment, Rule, Scalar, blend_square


class _Step(NamedTuple):
    """What a step takes from rates past and present.

    Attributes:
        lr: after warm-up.
        c: the share of z in the new average.
        lr_max: the highest rate so far.
        weight_sum: of all steps so far.
    """

    lr: float
    c: float
    lr_max: float
    weight_sum: float


@dataclass(frozen=True)
class _ScheduleFree(Rule):
    """What both have in common."""

    averages = True

    @property
    @abstractmethod
    def _share(self) -> float:
        """b: the share of x in y."""

    def _step_of(self, at: Moment, warmup_steps: int, r: float, weight_lr_power: float) -> _Step:
        lr = at.lr * min(1.0, at.step / warmup_steps) if warmup_steps else at.lr
        lr_max = max(lr, at.scalars[0])
        weight = at.step**r * lr_max**weight_lr_power
        weight_sum = at.scalars[1] + weight
        return _Step(lr, weight / weight_sum if weight_sum else 0.0, lr_max, weight_sum)

    def scalars(self) -> tuple[Scalar, ...]:
        return (Scalar("lr_max", -1.0), Scalar("weight_sum", 0.0))

    def _move(self, block: Block, z: Array, step: _Step) -> None:
        """Steps of y and z along the direction in `block.g`."""
        p, g, t = block.p, block.g, block.scratch[0]
        np.subtract(z, p, out=t)
        t *= step.c
        p += t
        # z moves by lr * g, and y by what x and z make of it.
        g *= step.lr
        np.multiply(g, 1 - self._share * (1 - step.c), out=t)
        p -= t
        z -= g

    def average(self, block: Block, step: int, out: Array) -> None:
        """x: y = b x + (1 - b) z solved for it."""
        np.subtract(block.p, block.buffers[0], out=out)
        out *= 1 / self._share
        out += block.buffers[0]


@dataclass(frozen=True)
class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-Free SGD: Defazio et al., 2024, https://arxiv.org/abs/2405.15682

    g = g + weight_decay * y
    z = z - lr * g, then x and y as this file says, with b = momentum
    """

    lr: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0

    def check(self) -> None:
        super().check()
        self.require(0 < self.momentum < 1, "momentum", self.momentum, "in (0, 1)")
        self.require_not_negative("weight_decay")
        _check_weights(self, self.warmup_steps, self.r, self.weight_lr_power)

    @property
    def _share(self) -> float:
        return self.momentum

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("z", "parameter"),)

    def advance(self, at: Moment) -> tuple[float, ...]:
        step = self._step_of(at, self.warmup_steps, self.r, self.weight_lr_power)
        return step.lr_max, step.weight_sum

    def update(self, block: Block, at: Moment) -> None:
        p, g, (t,) = block.p, block.g, block.scratch
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=t)
            g += t
        self._move(block, block.buffers[0], self._step_of(at, self.warmup_steps, self.r, self.weight_lr_power))


@dataclass(frozen=True)
class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-Free AdamW: Defazio et al., 2024, https://arxiv.org/abs/2405.15682

    v = b2 v + (1 - b2) g^2
    g = g / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * y
    z = z - lr * g, then x and y as this file says, with b = b1
    """

    lr: float = 0.0025
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    r: float = 0.0
    weight_lr_power: float = 2.0

    def check(self) -> None:
        super().check()
        self.require(0 < self.betas[0] < 1, "betas[0]", self.betas[0], "in (0, 1)")
        self.require(0 <= self.betas[1] < 1, "betas[1]", self.betas[1], "in [0, 1)")
        self.require_not_negative("eps", "weight_decay")
        _check_weights(self, self.warmup_steps, self.r, self.weight_lr_power)

    @property
    def _share(self) -> float:
        return self.betas[0]

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("z", "parameter"), Buffer("exp_avg_sq"))

    def advance(self, at: Moment) -> tuple[float, ...]:
        step = self._step_of(at, self.warmup_steps, self.r, self.weight_lr_power)
        return step.lr_max, step.weight_sum

    def update(self, block: Block, at: Moment) -> None:
        p, g, (z, v), (t,) = block.p, block.g, block.buffers, block.scratch
        b2 = self.betas[1]
        blend_square(v, g, b2, t)
        np.sqrt(v, out=t)
        t *= 1 / math.sqrt(1 - b2**at.step)
        t += self.eps
        g /= t
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=t)
            g += t
        self._move(block, z, self._step_of(at, self.warmup_steps, self.r, self.weight_lr_power))


def _check_weights(rule: Rule, warmup_steps: int, r: float, weight_lr_power: float) -> None:
    rule.require(warmup_steps >= 0, "warmup_steps", warmup_steps, ">= 0")
    rule.require(r >= 0, "r", r, ">= 0")
    rule.require(weight_lr_power >= 0, "weight_lr_power", weight_lr_power, ">= 0")
