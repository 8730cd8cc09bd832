"""What the blocks of a gradient add up to: the norms for clipping, without rounding between blocks. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules.base import Array
from stepd.v1 import round_pb2, run_pb2
from stepd_server.exact import ExactSum
from stepd_server.shard.plan import Counts, Span
from stepd_server.shard.scratch import aligned_empty

Doubles = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Shaping:
    """What is done to a sum of contributions to make it a gradient, before any clip by norm.

    Attributes:
        divisor: of the sum.
        limits: by group, the clip by value; infinity for none.
    """

    divisor: float
    limits: tuple[float, ...]

    def apply(self, total: Array, group: int, out: Array) -> Array:
        """The gradient of elements of one group, in `out`; or `total` itself if it is the gradient."""
        limit = self.limits[group]
        if self.divisor != 1.0:
            total = np.multiply(total, 1.0 / self.divisor, out=out)
        if limit != math.inf:
            total = np.clip(total, -limit, limit, out=out)
        return total


@dataclass
class NormPart:
    """The part of a p-norm that some elements give."""

    p: float
    powers: ExactSum = field(default_factory=ExactSum)
    maximum: float = 0.0

    def to_proto(self) -> round_pb2.NormPart:
        if self.p == math.inf:
            return round_pb2.NormPart(maximum=self.maximum)
        return round_pb2.NormPart(powers=self.powers.to_proto())


class Summing:
    """Sums over spans as they are completed.

    Every block gives one double, summed pairwise by NumPy over the same elements on any shard count; the doubles are
    added exactly. So the norm has the same bits however the run is divided.
    """

    def __init__(self, dtype: np.dtype[Any], shaping: Shaping, run_p: float, group_p: tuple[float | None, ...]) -> None:
        self.shaping = shaping
        self.run_norms = [NormPart(run_p) for _ in group_p]
        self.group_norms = [None if p is None else NormPart(p) for p in group_p]
        # A sum of finite contributions was not finite.
        self.overflow = False
        self._terms: dict[int, tuple[NormPart, list[Doubles]]] = {}
        (self._shaped,) = aligned_empty(1, BLOCK_ELEMENTS, dtype)
        (self._wide,) = aligned_empty(1, BLOCK_ELEMENTS, np.dtype(np.float64))

    def add(self, span: Span, total: Array) -> None:
        """Take in a span of the sum of all contributions."""
        with np.errstate(all="ignore"):
            g = self.shaping.apply(total, span.group, self._shaped[: total.size])
            self._add(self.run_norms[span.group], span.blocks, g)
            own = self.group_norms[span.group]
            if own is not None:
                self._add(own, span.blocks, g)

    def _add(self, norm: NormPart, blocks: Counts, g: Array) -> None:
        wide = self._wide[: g.size]
        np.copyto(wide, g)
        if norm.p == math.inf:
            largest = float(np.abs(wide, out=wide).max())
            if math.isfinite(largest):
                norm.maximum = max(norm.maximum, largest)
            else:
                self.overflow = True
            return
        if norm.p == 2.0:
            np.multiply(wide, wide, out=wide)
        else:
            np.abs(wide, out=wide)
            if norm.p != 1.0:
                np.power(wide, norm.p, out=wide)
        terms = np.add.reduceat(wide, blocks)
        if not np.isfinite(terms).all() and not np.isfinite(g).all():
            self.overflow = True
            return
        # Adding exactly has a cost for each call: collect, and add once at the end.
        self._terms.setdefault(id(norm), (norm, []))[1].append(terms)

    def finish(self) -> None:
        """Add up what has been collected."""
        for norm, terms in self._terms.values():
            norm.powers.add_array(np.concatenate(terms))
        self._terms.clear()


def clip_norm_type(clip: run_pb2.ClipSpec) -> float:
    """The p of a clip's norm; 2 also without a clip, for the norm is always reported."""
    return clip.norm_type if clip.HasField("norm_type") else 2.0


def clip_limit(*clips: run_pb2.ClipSpec) -> float:
    """The smallest limit by value of some clips; infinity if none has one."""
    return min((clip.max_value for clip in clips if clip.HasField("max_value")), default=math.inf)
