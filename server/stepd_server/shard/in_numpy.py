"""Adding and summing without compiled loops: the same to the bit, by parts that stay in the second-level cache. No I/O.

Nearly all of a pass over a part is outside the interpreter lock, so that two threads take little more than half of the
time of one; over smaller parts they would take turns.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules.base import Array
from stepd_server.shard.plan import Piece, Span
from stepd_server.shard.sums import Found, Room, Summing


class InNumPy:
    """What loops do to an accumulator, by NumPy."""

    def __init__(self, piece: Piece, accumulator: Array) -> None:
        self._dtype = piece.dtype
        self._accumulator = accumulator
        self._spans: Sequence[Span] = ()
        self._starts: list[int] = []
        self._summing: Summing | None = None
        # By index of the span: what was found of those that were complete when they came.
        self._found: dict[int, Found] = {}
        # Of threads that are done.
        self._rooms: list[Room] = []

    def begin_sums(self, spans: Sequence[Span], summing: Summing) -> None:
        self._spans, self._summing = spans, summing
        self._starts = [span.start for span in spans]

    def add(
        self, start: int, data: Array, weight: float, reached: bool, *, complete: bool, threads: int = 1
    ) -> Iterator[list[Callable[[], bool]]]:
        """Calls that add elements, at the same time if need be. What is complete is looked at as well."""
        yield [
            partial(self._add, low, data[low - start : high - start], weight, reached, complete)
            for low, high in self._shared_out(start, start + data.size, threads)
        ]

    def has(self, index: int) -> bool:
        """Whether a span was complete when it came, so that it need not be read again."""
        return index in self._found

    def sum(self, index: int) -> None:
        """Sum a span that is there."""
        assert self._summing is not None
        span, found = self._spans[index], self._found.pop(index, None)
        if found is None:
            room = self._room()
            found = self._summing.measure(span, self._accumulator[span.start : span.stop], room)
            self._rooms.append(room)
        self._summing.take_in(span, found)

    def _add(self, start: int, data: Array, weight: float, reached: bool, complete: bool) -> bool:
        room, summing = self._room(), self._summing
        # Here and not around all calls: it belongs to a thread.
        with np.errstate(all="ignore"):
            for low, high, index in self._parts(start, start + data.size):
                part, total = data[low - start : high - start], self._accumulator[low:high]
                if summing is None or index is None or not complete:
                    if not is_finite(part):
                        return True
                    _merge(total, part, weight, reached)
                    continue
                span = self._spans[index]
                tells = summing.tells_finite(span)
                if not tells and not is_finite(part):
                    return True
                _merge(total, part, weight, reached)
                found = self._found[index] = summing.measure(span, total, room)
                if tells and any(one is None for one in found) and not np.isfinite(part).all():
                    return True
        self._rooms.append(room)
        return False

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
        """Stretches that are worked on together, each with the index of the span that it is the whole of."""
        if not self._spans:
            for low in range(start, stop, BLOCK_ELEMENTS):
                yield low, min(low + BLOCK_ELEMENTS, stop), None
            return
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            span = self._spans[index]
            high = min(span.stop, stop)
            yield start, high, index if (start, high) == (span.start, span.stop) else None
            start, index = high, index + 1

    def _shared_out(self, start: int, stop: int, threads: int) -> Iterator[tuple[int, int]]:
        """About as much for each thread, cut where spans begin."""
        size, begin = -(-(stop - start) // threads), start
        while begin < stop:
            at, end = begin + size, stop
            if at < stop:
                next_ = bisect_left(self._starts, at)
                end = min(stop, self._starts[next_]) if next_ < len(self._starts) else stop
            yield begin, end
            begin = end

    def _room(self) -> Room:
        try:
            return self._rooms.pop()
        except IndexError:
            return Room(self._dtype)


def _merge(total: Array, part: Array, weight: float, reached: bool) -> None:
    if not reached and weight == 1.0:
        np.copyto(total, part)
    elif not reached:
        np.multiply(part, weight, out=total)
    elif weight == 1.0:
        total += part
    else:
        total += part * weight


def is_finite(data: Array) -> bool:
    """Whether all elements are finite: the sum of squares tells nearly always, and costs a fifth of looking at each."""
    return bool(math.isfinite(np.dot(data, data)) or np.isfinite(data).all())
