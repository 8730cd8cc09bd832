"""The sum of contributions as it grows, and what it adds up to as it is completed. No I/O, no waiting.

With `stepd[fast]` every element is touched once, when it arrives. Without it NumPy does the same to the bit
(in_numpy.py).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from stepd.rules.base import Array
from stepd_server.shard.coverage import Coverage
from stepd_server.shard.in_numpy import InNumPy
from stepd_server.shard.lanes import LANES, fold
from stepd_server.shard.plan import Piece, Span
from stepd_server.shard.sums import Summing

_LANE_BYTES: Final = LANES * 8


# Adds some elements; gives whether one of them is not finite.
Call: TypeAlias = Callable[[], bool]


class Loops(Protocol):
    """Compiled loops: functions as `kernels/gather.py` has them."""

    def __getitem__(self, form: tuple[bool, bool, bool, bool, bool]) -> Any:
        """For what arrives, weighted, reached, complete, limited."""


class Accumulating:
    """The accumulator of one attempt.

    Elements are completed in the order of the flat space: what lies below everybody's frontier.
    """

    def __init__(self, piece: Piece, accumulator: Array, loops: Loops | None = None) -> None:
        self._reached = Coverage()
        self._spans: Sequence[Span] = ()
        self._summing: Summing | None = None
        # The first span that is not summed, and the flat place up to which everything is.
        self._next = 0
        self._summed = 0
        self._compiled = _Compiled(piece, accumulator, loops) if loops is not None else None
        self._plain = InNumPy(piece, accumulator)

    def begin_sums(self, spans: Sequence[Span], summing: Summing) -> None:
        """From now on what is complete is summed.

        Args:
            spans: of what the contributions hold.
            summing: where to.
        """
        self._spans = spans
        self._summing = summing
        self._plain.begin_sums(spans, summing)
        if self._compiled is not None and summing.squares:
            self._compiled.begin_sums(summing)

    def add(self, start: int, data: Array, weight: float, others: int, spans: int | None = None) -> bool:
        """Add the elements from `start` on of one contribution, times a weight.

        Args:
            start: in the flat space.
            data: the elements.
            weight: of the contribution.
            others: the least frontier of all other contributions.
            spans: sum at most so many beyond these elements.

        Returns:
            Whether they are finite. If not, the sum means nothing any more.
        """
        bad = [call() for calls in self.calls(start, data, weight, others, spans) for call in calls]
        return not any(bad)

    def calls(
        self, start: int, data: Array, weight: float, others: int, spans: int | None = None, threads: int = 1
    ) -> list[list[Call]]:
        """Calls that add elements; see `add`. Nothing else may be asked before all of them are made.

        Args:
            threads: that make calls of one list at the same time, when those of the list before are made.
        """
        # What this contribution has passed over may be complete.
        self.sum_to(min(start, others), spans)
        compiled, calls = self._compiled, list[list[Call]]()
        way = compiled or self._plain
        for low, high, reached in self._reached.add(start, start + data.size):
            part, middle = data[low - start : high - start], low
            if self._sums_at_once(low):
                middle = max(low, min(high, others))
            if low < middle:
                calls += way.add(low, part[: middle - low], weight, reached, complete=True, threads=threads)
                if compiled:
                    self._summed = middle
            if middle < high:
                calls += way.add(middle, part[middle - low :], weight, reached, complete=False, threads=threads)
        return calls

    def _sums_at_once(self, place: int) -> bool:
        """Whether what is complete from a place on is summed as it comes."""
        if self._compiled is None:
            return self._summing is not None
        return self._compiled.sums and self._summed == place

    def sum_to(self, frontier: int, spans: int | None = None) -> bool:
        """Sum what is complete and has not been summed.

        Args:
            frontier: the flat place up to which everything is complete.
            spans: at most so many.

        Returns:
            Whether everything is summed.
        """
        if self._summing is None:
            return False
        left = len(self._spans) if spans is None else spans
        with np.errstate(all="ignore"):
            while self._next < len(self._spans) and (left or self._plain.has(self._next)):
                span = self._spans[self._next]
                if self._compiled is not None and self._compiled.sums:
                    low, high = max(span.start, self._summed), min(span.stop, frontier)
                    if low < high:
                        self._compiled.sum(low, high)
                        self._summed = high
                if span.stop > frontier:
                    break
                left -= not self._plain.has(self._next)
                if self._compiled is None or not self._compiled.sums:
                    self._plain.sum(self._next)
                self._next += 1
        if self._next < len(self._spans):
            self._summed = max(self._summed, min(frontier, self._spans[self._next].start))
        return self._next == len(self._spans)

    def finish(self) -> Summing:
        """The sums of everything."""
        assert self._summing is not None
        if self._compiled is not None and self._compiled.sums:
            self._compiled.finish(self._summing)
        self._summing.finish()
        return self._summing


class _Compiled:
    """The same by compiled loops.

    Attributes:
        sums: whether they sum.
    """

    def __init__(self, piece: Piece, accumulator: Array, loops: Loops) -> None:
        self._piece = piece
        self._accumulator = accumulator
        self._loops = loops
        self._begins: list[int] = piece.block_begins.tolist()
        # Addresses are asked for once: NumPy takes as long for each as for a small loop.
        self._begins_at = piece.block_begins.ctypes.data
        self._accumulator_at = accumulator.ctypes.data
        self.sums = False
        self._lanes = np.zeros((0, LANES))
        self._lanes_at = 0
        # By group: whether there is a limit; weight, factor and limits.
        self._limited = [False]
        self._constants: list[Array] = []

    def begin_sums(self, summing: Summing) -> None:
        shaping = summing.shaping
        self.sums = True
        self._limited = [limit != math.inf for limit in shaping.limits]
        self._constants = [
            np.array((1.0, 1.0 / shaping.divisor, -limit, limit), self._piece.dtype) for limit in shaping.limits
        ]
        self._lanes = np.zeros((len(self._begins) - 1, LANES))
        self._lanes_at = self._lanes.ctypes.data

    def add(
        self, start: int, data: Array, weight: float, reached: bool, *, complete: bool, threads: int = 1
    ) -> Iterator[list[Call]]:
        """Calls that add elements, by group: those of one list have no block in common."""
        data_at, size, stop = data.ctypes.data, data.itemsize, start + data.size
        for group, low, high in self._by_group(start, stop) if complete else [(-1, start, stop)]:
            if complete:
                constants = self._constants[group].copy()
                constants[0] = weight
            else:
                constants = np.array((weight, 1.0, 1.0, 1.0), self._piece.dtype)
            limited = complete and self._limited[group]
            function = self._loops[True, weight != 1.0, reached, complete, limited]
            yield [
                self._call(function, data, data_at + (begin - start) * size, begin, end, constants)
                for begin, end in self._cut(low, high, threads)
            ]

    def sum(self, start: int, stop: int) -> None:
        """Sum elements that are there."""
        for group, low, high in self._by_group(start, stop):
            function = self._loops[False, False, False, True, self._limited[group]]
            self._call(function, None, 0, low, high, self._constants[group])()

    def finish(self, summing: Summing) -> None:
        """Hand over the sums of all blocks: of those that nobody has touched they are nothing."""
        for index, group in enumerate(self._piece.groups):
            first, last = (bisect_left(self._begins, place) for place in (group.start, group.stop))
            if first < last:
                summing.take(index, fold(self._lanes[first:last]), partial(self._block, first))

    def _block(self, first: int, at: int) -> Array:
        return self._accumulator[self._begins[first + at] : self._begins[first + at + 1]]

    def _by_group(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        groups = self._piece.groups
        if len(groups) == 1:
            return [(0, start, stop)]
        parts = [(i, max(start, group.start), min(stop, group.stop)) for i, group in enumerate(groups)]
        return [part for part in parts if part[1] < part[2]]

    def _cut(self, start: int, stop: int, threads: int) -> Iterator[tuple[int, int]]:
        """About as many parts as there are threads, between blocks: the lanes of a block are one thread's."""
        size, begin = -(-(stop - start) // threads), start
        while begin < stop:
            at = begin + size
            end = stop if at >= stop else min(stop, self._begins[bisect_left(self._begins, at)])
            yield begin, end
            begin = end

    def _call(self, function: Any, data: Array | None, data_at: int, start: int, stop: int, constants: Array) -> Call:
        block = bisect_right(self._begins, start) - 1
        arguments = (
            data_at,
            self._accumulator_at + start * self._accumulator.itemsize,
            start,
            stop,
            self._begins_at + 8 * block,
            self._lanes_at + _LANE_BYTES * block,
            constants.ctypes.data,
        )
        # What the addresses are of has to be there for as long as the call.
        return partial(_made, function, arguments, (data, constants, self))


def _made(function: Any, arguments: tuple[int, ...], _: object) -> bool:
    return bool(function(*arguments))
