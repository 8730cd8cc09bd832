"""What the blocks of a gradient add up to: the norms for clipping, without rounding between blocks. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules.base import Array
from stepd.v1 import round_pb2, run_pb2
from stepd_server.exact import ExactSum
from stepd_server.shard.lanes import Doubles, block_squares, block_sums
from stepd_server.shard.plan import Span
from stepd_server.shard.scratch import aligned_empty


@dataclass(frozen=True)
class Shaping:
    """What is done to a sum of contributions to make it a gradient, before any clip by norm.

    Attributes:
        divisor: of the sum.
        limits: by group, the clip by value; infinity for none.
    """

    divisor: float
    limits: tuple[float, ...]

    def gradient(self, total: Array, group: int, scale: float, out: Array) -> Array:
        """The gradient of elements of one group, times `scale`, in `out`: one multiplication unless it is limited."""
        limit = self.limits[group]
        if limit == math.inf:
            return np.multiply(total, scale / self.divisor, out=out)
        return np.multiply(self._limited(total, limit, out), scale, out=out)

    def measured(self, total: Array, group: int, out: Array) -> Array:
        """What the norm is taken of, which is to be multiplied by `unit`: `total` itself, or what is put in `out`."""
        limit = self.limits[group]
        return total if limit == math.inf else self._limited(total, limit, out)

    def unit(self, group: int) -> float:
        """What makes a norm of `measured` one of the gradient: dividing takes no pass over the elements."""
        return 1.0 / self.divisor if self.limits[group] == math.inf else 1.0

    def _limited(self, total: Array, limit: float, out: Array) -> Array:
        return np.clip(np.multiply(total, 1.0 / self.divisor, out=out), -limit, limit, out=out)


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


class Room:
    """What sums of spans are made in: one thread's."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        (self.shaped,) = aligned_empty(1, BLOCK_ELEMENTS, dtype)
        (self.wide,) = aligned_empty(1, BLOCK_ELEMENTS, np.dtype(np.float64))


# By norm, what a span adds to it: powers by block, or the largest element of a maximum norm. None: it is not finite.
Found: TypeAlias = list[Doubles | float | None]


class Summing:
    """Sums over spans as they are completed.

    Every block gives one double, summed over the same elements in the same order (lanes.py) on any shard count; the
    doubles are added exactly. So the norm has the same bits however the run is divided.
    """

    def __init__(self, shaping: Shaping, run_p: float, group_p: tuple[float | None, ...]) -> None:
        self.shaping = shaping
        self.run_norms = [NormPart(run_p) for _ in group_p]
        self.group_norms = [None if p is None else NormPart(p) for p in group_p]
        # A sum of finite contributions was not finite.
        self.overflow = False
        self._terms: dict[int, tuple[NormPart, list[Doubles]]] = {}

    @property
    def squares(self) -> bool:
        """Whether all that is wanted are sums of squares."""
        return all(norm is None or norm.p == 2.0 for norm in (*self.run_norms, *self.group_norms))

    def tells_finite(self, span: Span) -> bool:
        """Whether what is found of a span is finite only if all its elements are."""
        return self.shaping.limits[span.group] == math.inf

    def measure(self, span: Span, total: Array, room: Room) -> Found:
        """What a span of the sum of all contributions adds. Changes nothing here."""
        g = self.shaping.measured(total, span.group, room.shaped[: total.size])
        unit = self.shaping.unit(span.group)
        return [_measured(norm.p, unit, span, g, room.wide[: g.size]) for norm in self._norms(span.group)]

    def take_in(self, span: Span, found: Found) -> None:
        """Take in what was found of a span."""
        for norm, part in zip(self._norms(span.group), found, strict=True):
            if part is None:
                self.overflow = True
            elif isinstance(part, float):
                norm.maximum = max(norm.maximum, part)
            else:
                self._collect(norm, span.group, part)

    def take(self, group: int, squares: Doubles, block: Callable[[int], Array]) -> None:
        """Take in the sums of squares of blocks of one group.

        Args:
            group: index of the group.
            squares: of what `measured` gives, by block.
            block: gives the sum of contributions of one of them, by its place in `squares`.
        """
        for at in np.flatnonzero(~np.isfinite(squares)).tolist():
            total = block(at)
            if not np.isfinite(self.shaping.measured(total, group, np.empty_like(total))).all():
                self.overflow = True
                return
        for norm in self._norms(group):
            self._collect(norm, group, squares)

    def _norms(self, group: int) -> list[NormPart]:
        own = self.group_norms[group]
        return [self.run_norms[group]] if own is None else [self.run_norms[group], own]

    def _collect(self, norm: NormPart, group: int, terms: Doubles) -> None:
        terms = terms * self.shaping.unit(group) ** norm.p
        # Adding exactly has a cost for each call: collect, and add once at the end.
        self._terms.setdefault(id(norm), (norm, []))[1].append(terms)

    def finish(self) -> None:
        """Add up what has been collected."""
        for norm, terms in self._terms.values():
            norm.powers.add_array(np.concatenate(terms))
        self._terms.clear()


def _measured(p: float, unit: float, span: Span, g: Array, wide: Doubles) -> Doubles | float | None:
    if p == 2.0:
        terms = block_squares(g, span.blocks, wide)
    else:
        np.copyto(wide, g)
        np.abs(wide, out=wide)
        if p == math.inf:
            largest = float(wide.max()) * unit
            return largest if math.isfinite(largest) else None
        if p != 1.0:
            np.power(wide, p, out=wide)
        terms = block_sums(wide, span.blocks)
    return None if not np.isfinite(terms).all() and not np.isfinite(g).all() else terms


def clip_norm_type(clip: run_pb2.ClipSpec) -> float:
    """The p of a clip's norm; 2 also without a clip, for the norm is always reported."""
    return clip.norm_type if clip.HasField("norm_type") else 2.0


def clip_limit(*clips: run_pb2.ClipSpec) -> float:
    """The smallest limit by value of some clips; infinity if none has one."""
    return min((clip.max_value for clip in clips if clip.HasField("max_value")), default=math.inf)
