"""Momentum made orthogonal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from stepd.errors import InvalidArgument
from stepd.rules.base import Array, Block, Buffer, Moment, Reach, Rule, Shape, blend
from stepd.settings import shown

_NS_STEPS_MAX: Final = 99


@dataclass(frozen=True)
class Muon(Rule):
    """Muon: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; for matrices only.

        b = momentum * b + (1 - momentum) g
        u = momentum * b + (1 - momentum) g with `nesterov`, b without
        x = u / max(|u|, eps), then `ns_steps` times by Newton and Schulz:
            a, b, c = ns_coefficients;  s = x x';  x = a x + (b s + c s s) x
        p = p (1 - lr * weight_decay) - lr * f * x

    f = sqrt(max(1, rows / columns)) with `adjust_lr_fn` "original" or None, and 0.2 sqrt(max(rows, columns)) with
    "match_rms_adamw": Liu et al., 2025, https://arxiv.org/abs/2502.16982.

    torch computes x in bfloat16, which keeps two to three digits of it; here it has the dtype of the parameters.
    The difference to torch is that rounding, of about 1% of a step, and nothing else.
    """

    reach = Reach.WHOLE
    scratch = 3

    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None

    def check(self) -> None:
        super().check()
        self.require_not_negative("weight_decay", "momentum", "eps")
        self.require(0 <= self.ns_steps <= _NS_STEPS_MAX, "ns_steps", self.ns_steps, f"from 0 to {_NS_STEPS_MAX}")

    def buffers(self) -> tuple[Buffer, ...]:
        return (Buffer("momentum_buffer"),)

    def check_parameter(self, name: str, shape: Shape) -> None:
        if len(shape) != 2:
            raise InvalidArgument(
                f"parameter {shown(name)}: Muon updates matrices only, got shape {shape}; put it into a group with "
                "another rule: stepd.ParamGroup(..., optimizer=stepd.AdamW(...))",
                parameter=name,
                thing="Muon",
                field="shape",
                expected="2 dimensions",
                given=str(shape),
            )

    def update(self, block: Block, at: Moment) -> None:
        rows, columns = block.shape
        p, g, (b,), (x, s, t) = block.p, block.g, block.buffers, block.scratch
        blend(b, g, self.momentum, t)
        if self.nesterov:
            g *= 1 - self.momentum
            np.multiply(b, self.momentum, out=t)
            g += t
        else:
            g[...] = b
        # The smaller side in front: the squares below are of its size.
        tall = rows > columns
        short, long = min(rows, columns), max(rows, columns)
        u = g.reshape(rows, columns)
        x = x.reshape(short, long)
        x[...] = u.T if tall else u
        x *= 1 / max(_norm(x, t.reshape(short, long)), self.eps)
        square = short * short
        self._orthogonalise(x, g.reshape(short, long), s[:square].reshape(short, short), t[:square])
        x *= at.lr * self._factor(rows, columns)
        p *= 1 - at.lr * self.weight_decay
        p = p.reshape(rows, columns)
        p -= x.T if tall else x

    def _orthogonalise(self, x: Array, y: Array, s: Array, t: Array) -> None:
        """The iteration on x, in place; the others are scratch."""
        a, b, c = self.ns_coefficients
        t = t.reshape(s.shape)
        for _ in range(self.ns_steps):
            np.matmul(x, x.T, out=s)
            np.matmul(s, s, out=t)
            t *= c
            s *= b
            t += s
            np.matmul(t, x, out=y)
            x *= a
            x += y

    def _factor(self, rows: int, columns: int) -> float:
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns))


def _norm(x: Array, t: Array) -> float:
    np.multiply(x, x, out=t)
    return math.sqrt(float(np.add.reduce(t, axis=None, dtype=np.float64)))
