"""Adam's second moment from the sums of its rows and columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from stepd.rules.base import Array, Block, Buffer, Moment, Reach, Rule, Shape


def _row_var(shape: Shape) -> Shape | None:
    return (*shape[:-1], 1) if len(shape) > 1 else None


def _col_var(shape: Shape) -> Shape | None:
    return (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else None


def _variance(shape: Shape) -> Shape | None:
    return shape if len(shape) <= 1 else None


_BUFFERS: Final = (
    Buffer("row_var", shape=_row_var),
    Buffer("col_var", shape=_col_var),
    Buffer("variance", shape=_variance),
)


@dataclass(frozen=True)
class Adafactor(Rule):
    """Adafactor: Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235; in torch's form.

        w = t^beta2_decay                        rate = min(lr, 1 / sqrt(t)) * max(eps[1], rms(p))
        r = r + w (mean of g^2 over columns - r)             c = c + w (mean of g^2 over rows - c)
        v = r c / max(mean of r over rows, eps[0])           of vectors and scalars: v = v + w (g^2 - v)
        u = g / max(sqrt(v), eps[0])
        p = p (1 - lr * weight_decay) - rate / max(1, rms(u) / d) * u

    Rows and columns are the last two dimensions. eps[0] None is the distance from 1 to the next number of the dtype in
    which the parameters are kept: float64, or float32 where they are 16-bit.
    """

    reach = Reach.WHOLE
    scratch = 2

    lr: float = 1e-2
    beta2_decay: float = -0.8
    eps: tuple[float | None, float] = (None, 1e-3)
    d: float = 1.0
    weight_decay: float = 0.0
    maximize: bool = False

    def check(self) -> None:
        super().check()
        self.require(self.beta2_decay <= 0, "beta2_decay", self.beta2_decay, "<= 0")
        self.require(self.eps[0] is None or self.eps[0] >= 0, "eps[0]", self.eps[0], ">= 0, or None")
        self.require(self.eps[1] >= 0, "eps[1]", self.eps[1], ">= 0")
        self.require(self.d >= 1, "d", self.d, ">= 1")
        self.require_not_negative("weight_decay")

    def buffers(self) -> tuple[Buffer, ...]:
        return _BUFFERS

    def update(self, block: Block, at: Moment) -> None:
        p, g, t = block.p, block.g, block.scratch[0]
        if self.maximize:
            np.negative(g, out=g)
        smallest = float(np.finfo(p.dtype).eps) if self.eps[0] is None else self.eps[0]
        rate = min(at.lr, 1 / math.sqrt(at.step)) * max(self.eps[1], _rms(p, t))
        if self.weight_decay:
            p *= 1 - at.lr * self.weight_decay
        self._variance(block, at.step**self.beta2_decay, smallest)
        np.maximum(t, smallest * smallest, out=t)
        np.sqrt(t, out=t)
        g /= t
        g *= rate / max(1.0, _rms(g, t) / self.d)
        p -= g

    def _variance(self, block: Block, weight: float, smallest: float) -> None:
        """Advance the buffers and write what they say of g^2 into scratch[0]."""
        g, (r, c, v), (t, u), shape = block.g, block.buffers, block.scratch, block.shape
        np.multiply(g, g, out=t)
        if len(shape) <= 1:
            _approach(v, t, weight)
            t[...] = v
            return
        *_, rows, columns = shape
        squares = t.reshape(-1, rows, columns)
        count = squares.shape[0]
        r, c = r.reshape(count, rows, 1), c.reshape(count, 1, columns)
        _approach(r, _mean(squares, 2, u[: r.size].reshape(r.shape)), weight)
        _approach(c, _mean(squares, 1, u[: c.size].reshape(c.shape)), weight)
        overall = _mean(r, 1, u[:count].reshape(count, 1, 1))
        np.maximum(overall, smallest, out=overall)
        np.multiply(r, c, out=squares)
        squares /= overall


def _mean(values: Array, axis: int, out: Array) -> Array:
    np.add.reduce(values, axis=axis, keepdims=True, out=out)
    out *= 1 / values.shape[axis]
    return out


def _approach(average: Array, value: Array, weight: float) -> None:
    """average = average + weight * (value - average), overwriting the value."""
    value -= average
    value *= weight
    average += value


def _rms(x: Array, t: Array) -> float:
    np.multiply(x, x, out=t)
    return math.sqrt(float(np.add.reduce(t, axis=None, dtype=np.float64)) / x.size)
