"""The warm-up family: rises to the group's rate in equal steps, then stays or decays.

With `warmup_steps` = w, the rate at step s < w is lr * (s + 1) / w: the first step moves, and step w - 1 has the full
rate. The decay starts from the full rate at step w, and at `total_steps` = T the rate is `min_lr`, where it stays.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from stepd.schedules.base import Line, Schedule


@dataclass(frozen=True)
class Warmup(Schedule):
    """Rises to the group's rate within `warmup_steps` and stays there.

    torch: LambdaLR(lambda s: min(1, (s + 1) / w)).
    """

    warmup_steps: int

    def check(self) -> None:
        super().check()
        self.require_not_negative("warmup_steps")

    def line(self, step: int) -> Line:
        return _rise(step, self.warmup_steps) if step < self.warmup_steps else Line(1.0, 0.0)


@dataclass(frozen=True)
class _Decay(Schedule):
    """Warm-up, then from the full rate down to `min_lr` at `total_steps`."""

    total_steps: int
    warmup_steps: int = 0
    min_lr: float = 0.0

    def check(self) -> None:
        super().check()
        self.require(self.total_steps >= 1, "total_steps", self.total_steps, ">= 1")
        self.require(
            0 <= self.warmup_steps <= self.total_steps,
            "warmup_steps",
            self.warmup_steps,
            f">= 0 and <= total_steps ({self.total_steps})",
        )
        self.require_not_negative("min_lr")

    def line(self, step: int) -> Line:
        if step < self.warmup_steps:
            return _rise(step, self.warmup_steps)
        if step >= self.total_steps:
            return Line(0.0, self.min_lr)
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        left = self._left(done)
        return Line(left, self.min_lr * (1 - left))

    @abstractmethod
    def _left(self, done: float) -> float:
        """What is left of lr - min_lr, from 1 to 0, when `done` of the decay, from 0 to 1, is behind."""


@dataclass(frozen=True)
class Linear(_Decay):
    """Warm-up, then a straight line: min_lr + (lr - min_lr) * (T - s) / (T - w) for w <= s < T, then min_lr.

    Without warm-up it is torch's LinearLR(start_factor=1, end_factor=min_lr / lr, total_iters=T).
    """

    def _left(self, done: float) -> float:
        return 1 - done


@dataclass(frozen=True)
class Cosine(_Decay):
    """Warm-up, then half a cosine: Loshchilov & Hutter, 2017, https://arxiv.org/abs/1608.03983

        min_lr + (lr - min_lr) * (1 + cos(pi * (s - w) / (T - w))) / 2 for w <= s < T, then min_lr

    Without warm-up it is torch's CosineAnnealingLR(T_max=T, eta_min=min_lr) up to step T; torch's rises again after it.
    """

    def _left(self, done: float) -> float:
        return (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """Warm-up, then down with the root of the step: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762

        lr * sqrt(w / s) for s >= w

    As of all decays here, step w still has the full rate.
    """

    warmup_steps: int

    def check(self) -> None:
        super().check()
        self.require(self.warmup_steps >= 1, "warmup_steps", self.warmup_steps, ">= 1")

    def line(self, step: int) -> Line:
        if step < self.warmup_steps:
            return _rise(step, self.warmup_steps)
        return Line(math.sqrt(self.warmup_steps / step), 0.0)


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Warm-up, the full rate for `stable_steps`, then a straight line down to `min_lr` within `decay_steps`.

    Hu et al., 2024, https://arxiv.org/abs/2404.06395; straight as in Haegele et al., 2024,
    https://arxiv.org/abs/2405.18392
    """

    warmup_steps: int
    stable_steps: int
    decay_steps: int
    min_lr: float = 0.0

    def check(self) -> None:
        super().check()
        self.require_not_negative("warmup_steps", "stable_steps", "decay_steps", "min_lr")

    def line(self, step: int) -> Line:
        if step < self.warmup_steps:
            return _rise(step, self.warmup_steps)
        done = step - self.warmup_steps - self.stable_steps
        if done >= self.decay_steps:
            return Line(0.0, self.min_lr)
        left = 1 - max(0, done) / self.decay_steps
        return Line(left, self.min_lr * (1 - left))


def _rise(step: int, warmup_steps: int) -> Line:
    return Line((step + 1) / warmup_steps, 0.0)
