"""Sums in an order of our own, which NumPy and compiled loops can both keep. Pure.

The terms of a block are dealt out to LANES lanes: lane i adds up, one after the other and in doubles, the terms i,
i + LANES, i + 2 * LANES and so on. Then the second half of the lanes is added to the first, lane by lane, until one is
left. That is the sum of the block.

NumPy's own summation goes by pairs, in an order that is its own business and that a loop which sees a block in parts,
as they arrive, cannot keep. Lanes can be put aside at any element and gone on with; and they are as exact: an error
grows with the number of terms in a lane.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from stepd.rules.base import Array

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]

LANES: Final = 64

# Blocks of small tensors that are dealt out together.
_BLOCKS_AT_ONCE: Final = 1024


def block_sums(terms: Doubles, blocks: Places) -> Doubles:
    """The sum of each block.

    Args:
        terms: of the blocks, laid end to end; none is negative.
        blocks: where each begins.
    """
    if len(blocks) == 1:
        return fold(_deal(terms))
    stops = np.append(blocks[1:], terms.size)
    return np.concatenate(
        [
            fold(_deal_many(terms[blocks[at] : stops[last - 1]], blocks[at:last] - blocks[at]))
            for at in range(0, len(blocks), _BLOCKS_AT_ONCE)
            for last in (min(at + _BLOCKS_AT_ONCE, len(blocks)),)
        ]
    )


def block_squares(values: Array, blocks: Places, room: Doubles) -> Doubles:
    """The sum of squares of each block.

    Args:
        values: of the blocks, laid end to end.
        blocks: where each begins.
        room: as long; overwritten.
    """
    np.copyto(room, values)
    if len(blocks) == 1 and values.dtype == np.float32:
        return fold(_deal_squares(room))
    np.multiply(room, room, out=room)
    return block_sums(room, blocks)


def fold(lanes: Doubles) -> Doubles:
    """The sum of each row of lanes."""
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _deal(terms: Doubles) -> Doubles:
    """The lanes of one block."""
    lanes = np.zeros((1, LANES))
    full = terms.size // LANES * LANES
    if full:
        # Row after row: NumPy goes along the rows, whose elements are neighbours, and adds each to what it has.
        np.add.reduce(terms[:full].reshape(-1, LANES), axis=0, out=lanes[0])
    lanes[0, : terms.size - full] += terms[full:]
    return lanes


def _deal_squares(values: Doubles) -> Doubles:
    """The lanes of the squares of one block of what were single floats.

    Their squares are doubles without rounding, so it does not matter whether a processor rounds between squaring and
    adding; and einsum goes along the rows as `_deal` does, without a pass for the squares.
    """
    lanes = np.zeros((1, LANES))
    full = values.size // LANES * LANES
    if full:
        rows = values[:full].reshape(-1, LANES)
        np.einsum("ij,ij->j", rows, rows, out=lanes[0])
    lanes[0, : values.size - full] += values[full:] ** 2
    return lanes


def _deal_many(terms: Doubles, blocks: Places) -> Doubles:
    """The lanes of several blocks."""
    number = np.zeros(terms.size, np.int64)
    number[blocks[1:]] = 1
    number = np.cumsum(number)
    lane = (np.arange(terms.size) - blocks[number]) % LANES
    # It adds up in the order of the terms.
    sums = np.bincount(number * LANES + lane, weights=terms, minlength=len(blocks) * LANES)
    return sums.astype(np.float64, copy=False).reshape(-1, LANES)
