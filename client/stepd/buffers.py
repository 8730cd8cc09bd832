"""Where pulled parameters land: arrays for users, in memory that is used again.

All arrays of a result lie in one buffer. Fresh memory of 100 MB costs more in page faults than its content on the
network, so a buffer is taken again, but only once nobody refers to any part of it: what a user holds never changes.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from stepd import casts, wire
from stepd.definitions import DType
from stepd.errors import StepdError
from stepd.transfer import Plan
from stepd.v1 import shard_pb2

Array = np.ndarray[Any, np.dtype[Any]]

# In the usual loop two alternate: the result that the user holds and the one that arrives. A third is for comparing.
BUFFERS_MAX: Final = 3
# Regions of a buffer start at multiples of this, which is a cache line.
ALIGNMENT: Final = 64


class Buffers:
    """A few buffers of bytes that are lent out for as long as something refers to them."""

    def __init__(self, most: int = BUFFERS_MAX) -> None:
        self._most = most
        self._kept: list[Array] = []

    def take(self, size: int) -> Array:
        """A buffer of `size` bytes that nobody else refers to; its content means nothing."""
        kept = self._kept
        for i in range(len(kept)):
            # The list's own reference and the argument's, as measured below: no view of it is alive.
            if kept[i].size == size and sys.getrefcount(kept[i]) <= _REFERENCES_OF_IDLE:
                return kept[i]
        buffer = np.empty(size, np.uint8)
        if len(kept) >= self._most:
            kept.pop(0)
        kept.append(buffer)
        return buffer


def _references_of_idle() -> int:
    kept = [np.empty(0, np.uint8)]
    return sys.getrefcount(kept[0])


# Measured and not written down: what an expression itself holds differs between versions of Python.
_REFERENCES_OF_IDLE: Final = _references_of_idle()


def copy_into(buffers: Buffers, arrays: Mapping[int, Array]) -> dict[int, Array]:
    """Copies of C-contiguous arrays, all in one buffer."""
    buffer = buffers.take(sum(array.nbytes for array in arrays.values()))
    copies, at = {}, 0
    for id_, array in arrays.items():
        copy = buffer[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
        np.copyto(copy, array)
        copies[id_] = copy
        at += array.nbytes
    return copies


class Segment(NamedTuple):
    """Elements [start, stop) of a shard's flat space, which land in a region from element `at` on."""

    start: int
    stop: int
    region: int
    at: int


class Place(NamedTuple):
    """Where a parameter lies: from element `at` of a region on."""

    region: int
    at: int


class Region(NamedTuple):
    """Elements of one dtype, `offset` bytes into the buffer."""

    dtype: DType
    offset: int
    elements: int


class Picture:
    """Which parameters are wanted, as what, and how they lie in a buffer: one region for each dtype.

    Attributes:
        ids: the parameters wanted, ascending.
        bytes: of the buffer.
        version: of the layout that it is of.
    """

    def __init__(self, plan: Plan, ids: Sequence[int] | None, dtype: DType | None, *, separate: bool = False) -> None:
        """
        Args:
            plan: of the run.
            ids: the parameters wanted; None for all.
            dtype: what to cast to; None for each parameter's own.
            separate: every parameter gets a region of its own.
        """
        self.plan = plan
        self.version = plan.version
        self.ids = sorted(set(range(len(plan.parameters)) if ids is None else ids))
        self._held = None if len(self.ids) == len(plan.parameters) else frozenset(self.ids)
        places: dict[int, Place] = {}
        kinds: list[tuple[DType, int]] = []  # dtype and elements so far, by region
        of_dtype: dict[DType, int] = {}
        for id_ in self.ids:
            kind = dtype or plan.parameters[id_].dtype
            region = len(kinds) if separate else of_dtype.setdefault(kind, len(kinds))
            if region == len(kinds):
                kinds.append((kind, 0))
            count = kinds[region][1]
            places[id_] = Place(region, count)
            kinds[region] = (kind, count + plan.parameters[id_].size)
        self.places = places
        self.regions: list[Region] = []
        offset = 0
        for kind, count in kinds:
            self.regions.append(Region(kind, offset, count))
            offset += -(-count * kind.itemsize // ALIGNMENT) * ALIGNMENT
        self.bytes = offset
        self._segments = tuple(self._segments_of(shard) for shard in range(len(plan.shards)))
        self._ranges = tuple(plan.ranges(shard, self._held) for shard in range(len(plan.shards)))

    @property
    def shards(self) -> list[int]:
        """Those to ask: all of them for whole pictures, or those that hold any of the parameters."""
        if self._held is None:
            return list(range(len(self._segments)))
        return [shard for shard, segments in enumerate(self._segments) if segments]

    def ranges(self, shard: int) -> tuple[shard_pb2.Range, ...]:
        """What to ask a shard for; empty for everything."""
        return () if self._held is None else self._ranges[shard]

    def payload_bytes(self, shard: int) -> int:
        return sum(s.stop - s.start for s in self._segments[shard]) * self.plan.dtype.itemsize

    def regions_in(self, buffer: Array) -> list[Array]:
        """Each region as a flat array."""
        return [buffer[r.offset : r.offset + r.elements * r.dtype.itemsize].view(r.dtype) for r in self.regions]

    def arrays_in(self, buffer: Array) -> dict[str, Array]:
        """The parameters by name, as views of the buffer, which they keep alive."""
        regions, arrays = self.regions_in(buffer), {}
        for name, region, part, shape in self._cuts:
            array = regions[region][part]
            arrays[name] = array if shape is None else array.reshape(shape)
        return arrays

    @cached_property
    def _cuts(self) -> list[tuple[str, int, slice, tuple[int, ...] | None]]:
        """Of each parameter: its name, its region, where it lies there, and its shape unless it is flat."""
        parameters = self.plan.parameters
        return [
            (
                parameters[id_].name,
                region,
                slice(at, at + parameters[id_].size),
                None if len(parameters[id_].shape) == 1 else parameters[id_].shape,
            )
            for id_, (region, at) in self.places.items()
        ]

    def receiver(self, shard: int, regions: Sequence[Array]) -> Receiver:
        """Takes the chunks of one stream from a shard."""
        return Receiver(self._segments[shard], regions, self.plan.dtype)

    def _segments_of(self, shard: int, *, without: Container[int] = ()) -> tuple[Segment, ...]:
        merged: list[Segment] = []
        flat = 0
        for piece in self.plan.shards[shard]:
            place = self.places.get(piece.parameter)
            if place is not None and piece.parameter not in without:
                new = Segment(flat, flat + piece.count, place.region, place.at + piece.start)
                last = merged[-1] if merged else None
                if (
                    last
                    and last.stop == new.start
                    and last.region == new.region
                    and last.at + flat - last.start == new.at
                ):
                    merged[-1] = last._replace(stop=new.stop)
                else:
                    merged.append(new)
            flat += piece.count
        return tuple(merged)


class Receiver:
    """Writes one stream of chunks to where it belongs; casts on the way."""

    def __init__(self, segments: Sequence[Segment], regions: Sequence[Array], dtype: DType) -> None:
        self._segments = segments
        self._regions = regions
        self._dtype = dtype
        self._next = 0  # the segment that the stream is in
        self._at = segments[0].start if segments else 0

    def take(self, chunk: wire.Chunk | wire.Halves) -> None:
        """Write the next chunk. StepdError if it is not the next."""
        kind = chunk.kind if isinstance(chunk, wire.Halves) else None
        dtype = self._dtype if kind is None else casts.DTYPES[kind]
        if chunk.data.nbytes % dtype.itemsize:
            raise StepdError(f"a shard sent a chunk of {chunk.data.nbytes} bytes, which are no whole elements")
        data = np.frombuffer(chunk.data, dtype)
        done = 0
        # A master may exceed the range of 16 bits. That gives infinities, as any cast does, and no warning from here.
        with np.errstate(over="ignore"):
            while done < data.size:
                if self.complete or chunk.offset + done != self._at:
                    raise StepdError(f"a shard sent elements from {chunk.offset + done} on in place of {self._at}")
                segment = self._segments[self._next]
                count = min(segment.stop - self._at, data.size - done)
                to = segment.at + self._at - segment.start
                region, part = self._regions[segment.region][to : to + count], data[done : done + count]
                if kind is None:
                    region[...] = part
                else:
                    casts.widen(part, kind, region)  # where it belongs at once
                done += count
                self._at += count
                if self._at == segment.stop:
                    self._next += 1
                    if not self.complete:
                        self._at = self._segments[self._next].start

    @property
    def complete(self) -> bool:
        return self._next == len(self._segments)
