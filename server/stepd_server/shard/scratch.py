"""Memory for intermediate results."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules import Reach
from stepd.rules.base import Array
from stepd_server.shard.plan import Piece

# A cache line: NumPy's loops over arrays that begin at one take less than half the time of those that do not.
_ALIGNMENT = 64


def aligned_empty(rows: int, columns: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of `rows` rows, each beginning at a cache line if `columns` fill whole ones. Content means nothing."""
    size = rows * columns * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size].view(dtype).reshape(rows, columns)


class Scratch:
    """What the updates of a run work in, taken once: a tensor that a rule must see whole may need gigabytes."""

    def __init__(self, piece: Piece) -> None:
        self._dtype = piece.dtype
        self._memory = aligned_empty(
            1, max((_needed(piece, g) for g in range(len(piece.groups))), default=0), piece.dtype
        )

        self._known: tuple[int, int, list[Array]] = (0, 0, [])

    def rows(self, count: int, size: int) -> list[Array]:
        """So many arrays of so many elements. The same memory in every call; content means nothing."""
        if self._known[:2] != (count, size):
            columns = _padded(size, self._dtype)
            rows: list[Array] = [self._memory[0, row * columns : row * columns + size] for row in range(count)]
            # Of neighbours most have one size.
            self._known = (count, size, rows)
        return self._known[2]


def _needed(piece: Piece, index: int) -> int:
    """Elements for the gradient and the scratch of a group's rule."""
    group = piece.groups[index]
    largest = BLOCK_ELEMENTS
    if group.rule.reach is Reach.WHOLE:
        ends = piece.starts[group.first : group.first + len(group.shapes) + 1]
        largest = max((stop - start for start, stop in pairwise(ends)), default=0)
    return (1 + group.rule.scratch) * _padded(largest, piece.dtype)


def _padded(size: int, dtype: np.dtype[Any]) -> int:
    """Elements of a row that ends where the next may begin."""
    line = _ALIGNMENT // dtype.itemsize
    return -(-size // line) * line
