"""Sets of stretches of the flat space. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate


class Coverage:
    """A growing set of elements, kept as disjoint stretches; it says which part of a new stretch it holds already.

    An accumulator is not cleared between rounds: the first contribution to reach an element is stored, the others are
    added. This remembers which elements have been reached.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Add [start, stop); give its parts in order, each with whether it was in the set before."""
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        parts: list[tuple[int, int, bool]] = []
        at = start
        for i in range(first, last):
            low, high = max(self._starts[i], start), min(self._stops[i], stop)
            if at < low:
                parts.append((at, low, False))
            if low < high:
                parts.append((low, high, True))
            at = max(at, high)
        if at < stop:
            parts.append((at, stop, False))
        merged_start = min(start, self._starts[first]) if first < last else start
        merged_stop = max(stop, self._stops[last - 1]) if first < last else stop
        self._starts[first:last] = [merged_start]
        self._stops[first:last] = [merged_stop]
        return iter(parts)

    def __repr__(self) -> str:
        return f"Coverage({list(zip(self._starts, self._stops, strict=True))})"


class Track:
    """Translates offsets within ranges laid end to end into the flat space that the ranges are of."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Ranges [start, stop), ascending."""
        self._ranges = ranges
        self._offsets = list(accumulate((stop - start for start, stop in ranges), initial=0))

    @property
    def size(self) -> int:
        """Elements in all ranges."""
        return self._offsets[-1]

    def frontier(self, offset: int, end: int) -> int:
        """The flat place of the element at `offset`; `end` past the last."""
        if offset >= self.size:
            return end
        i = bisect_right(self._offsets, offset) - 1
        return self._ranges[i][0] + offset - self._offsets[i]

    def flat(self, offset: int, count: int) -> Iterator[tuple[int, int, int]]:
        """The flat stretches [start, stop) of elements [offset, offset + count), each with where it begins in them."""
        i = bisect_right(self._offsets, offset) - 1
        done = 0
        while done < count:
            start = self._ranges[i][0] + offset + done - self._offsets[i]
            stop = min(start + count - done, self._ranges[i][1])
            yield start, stop, done
            done += stop - start
            i += 1
