"""Averages of parameters on a shard: the run's, kept beside them, and those that rules keep, made when asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from stepd.errors import FailedPrecondition
from stepd.rules import Block
from stepd.rules.base import Array
from stepd_server.shard.arena import Arena
from stepd_server.shard.plan import Bools, Piece


class Averaging:
    """What one step does to the run's average, if there is one and it counts the step. In place."""

    def __init__(self, arena: Arena, step: int) -> None:
        """
        Args:
            arena: whose average.
            step: the number of steps applied when this one is.
        """
        average = arena.piece.average
        self._arena = arena
        self._share = average.share(arena.averaged_steps) if average and average.counts(step) else 0.0

    @property
    def counts(self) -> bool:
        """Whether there is one, and the step goes into it."""
        return self._share != 0.0

    def add(self, start: int, stop: int, t: Array) -> None:
        """Average elements whose parameters are final, best while these are in the cache. Overwrites t."""
        if not self._share:
            return
        assert self._arena.averaged is not None
        p, average = self._arena.parameters[start:stop], self._arena.averaged[start:stop]
        if self._share == 1.0:
            average[...] = p  # what the average was before has no meaning yet
            return
        np.subtract(p, average, out=t)
        t *= self._share
        average += t

    def untouched(self, touched: Bools) -> Iterator[tuple[int, int]]:
        """Stretches [start, stop) of slices that the step leaves as they are: they are averaged all the same."""
        if self.counts:
            starts = self._arena.piece.starts
            for first, last in _runs_of(~touched):
                yield starts[first], starts[last]


def check_averages(piece: Piece) -> None:
    """Raise unless something of the run is averaged."""
    if piece.average is None and not any(group.rule.averages for group in piece.groups):
        rules = ", ".join(sorted({type(group.rule).__name__ for group in piece.groups}))
        raise FailedPrecondition(
            f"run {piece.spec.name!r} has no averages: it was created without average=, and {rules} keeps none",
            reason="NO_AVERAGE",
            run=piece.spec.name,
            expected="average=stepd.EMA(decay) or stepd.SWA(start, every), or a rule that averages",
            given=rules,
        )


def averaged(arena: Arena, start: int, stop: int) -> Array:
    """The averages of some elements: where they lie, or made for the caller if a rule has to be asked."""
    piece = arena.piece
    if arena.averaged is not None:
        # Before the first step that counts the parameters are their own average.
        return (arena.averaged if arena.averaged_steps else arena.parameters)[start:stop]
    out: Array = np.empty(stop - start, piece.dtype)
    with np.errstate(all="ignore"):
        for low, high, index in _alike(arena, start, stop):
            group = piece.groups[piece.group_of(index)]
            own = arena.buffers[piece.group_of(index)]
            begin, end = low - group.start, high - group.start
            part = out[low - start : high - start]
            block = Block(
                p=arena.parameters[low:high], g=part, buffers=tuple(buffer[begin:end] for buffer in own), scratch=()
            )
            if group.rule.averages:
                group.rule.average(block, int(arena.updates[index]), part)
            else:
                part[...] = block.p
    return out


def _alike(arena: Arena, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Parts of [start, stop) of one group and one number of updates, each with the index of a slice in it."""
    piece = arena.piece
    index = first = bisect_right(piece.starts, start) - 1
    while piece.starts[index] < stop:
        index += 1
        mine = (piece.group_of(first), arena.updates[first])
        if piece.starts[index] >= stop or (piece.group_of(index), arena.updates[index]) != mine:
            yield max(start, piece.starts[first]), min(stop, piece.starts[index]), first
            first = index


def _runs_of(flags: Bools) -> Iterator[tuple[int, int]]:
    """Where [first, last) flags in a row are set."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
