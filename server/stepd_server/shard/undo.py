"""How a step is cut into units, each of which is done or can be undone. No I/O.

A unit overwrites one stretch of the parameters of one group, the stretches of the buffers that belong to it and that
of the run's average; or, in the pass over what the step has left as it is, a stretch of the average alone. What a unit
overwrites is copied into the undo slot first. The slot is as large as the largest unit, and stays in the cache.

Kernels keep what they overwrite in smaller parts, by themselves: see sweeping.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np

from stepd.rules import Reach
from stepd.rules.base import Array
from stepd_server.shard.journal import Journal
from stepd_server.shard.plan import Piece, Span

# Of how progress is written down.
VERSION: Final = 2

# Spans in a unit: small tensors whose rule takes them one by one share the cost of the journal.
_SPANS_MAX: Final = 16


class Unit(NamedTuple):
    """Attributes:
    start, stop: in the flat space.
    spans: what rules update; none if only the average changes.
    """

    start: int
    stop: int
    spans: Sequence[Span]


def undo_size(piece: Piece) -> int:
    """Elements that the largest unit overwrites."""
    return max((_largest(piece, index) for index in range(len(piece.groups))), default=0)


def _largest(piece: Piece, index: int) -> int:
    group, flat = piece.groups[index], _flat_arrays(piece)
    usual = min(piece.block, group.stop - group.start) * (flat + len(group.buffer_sizes))
    if group.rule.reach is not Reach.WHOLE:
        return usual
    tensors = range(len(group.shapes))
    sizes = [piece.starts[group.first + i + 1] - piece.starts[group.first + i] for i in tensors]
    kept = [sum(starts[i + 1] - starts[i] for starts in group.buffer_starts) for i in tensors]
    return max([usual, *(flat * size + own for size, own in zip(sizes, kept, strict=True))])


def units_of(piece: Piece, spans: Iterable[Span], averaged: Iterable[tuple[int, int]]) -> list[Unit]:
    """Cut a step into units, in the order in which they are done.

    Args:
        piece: of the run.
        spans: what rules update, ascending.
        averaged: stretches whose average changes though their parameters do not.
    """
    limit = undo_size(piece)
    units: list[Unit] = []
    few: list[Span] = []
    for span in piece.joined(spans):
        if few and not (
            span.group == few[0].group
            and len(few) < _SPANS_MAX
            and span.stop - few[0].start <= piece.block
            and _overwritten(piece, few[0], span) <= limit
        ):
            units.append(Unit(few[0].start, few[-1].stop, few))
            few = []
        few.append(span)
    if few:
        units.append(Unit(few[0].start, few[-1].stop, few))
    units += [
        Unit(at, min(at + piece.block, stop), ()) for start, stop in averaged for at in range(start, stop, piece.block)
    ]
    return units


def checksum(units: Sequence[Unit]) -> int:
    """Tells ways to cut apart: another version of this program may have another one."""
    cut = np.array([(VERSION, 0), *((unit.stop, len(unit.spans)) for unit in units)], "<i8")
    return zlib.crc32(cut.tobytes())


def keep(journal: Journal, slot: Array, arrays: Iterable[Array]) -> None:
    """Copy arrays into the slot."""
    at = 0
    for array in arrays:
        journal.write(slot[at : at + array.size], array)
        at += array.size


def put_back(journal: Journal, slot: Array, arrays: Iterable[Array]) -> None:
    """Copy the slot back over the arrays."""
    at = 0
    for array in arrays:
        journal.write(array, slot[at : at + array.size])
        at += array.size


def rest(unit: Unit, elements: int) -> Unit:
    """A unit of one span without its first elements, of which there may be fewer."""
    (span,) = unit.spans
    elements = min(elements, unit.stop - unit.start)
    return Unit(unit.start + elements, unit.stop, [replace(span, start=span.start + elements)])


def _flat_arrays(piece: Piece) -> int:
    return 2 if piece.average else 1


def _overwritten(piece: Piece, first: Span, last: Span) -> int:
    """Elements that a unit of these spans and all between them overwrites."""
    kept: int = sum(place.stop - place.start for place in piece.groups[first.group].stretches(first, last))
    return _flat_arrays(piece) * (last.stop - first.start) + kept
