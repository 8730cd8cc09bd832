"""What goes where: between a run's parameters, each an array of its own, and the flat spaces of the shards.

A plan is made once from the layout. After that a chunk costs one join of slices, whatever the number of tensors:
nothing is packed first, and nothing is computed for each tensor again. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from stepd import encodings, wire
from stepd.definitions import DType, ParameterSpec
from stepd.encodings import Array, Encoding
from stepd.errors import StepdError
from stepd.layout import Slice, flat_starts, slices_of
from stepd.limits import CHUNK_BYTES
from stepd.specs import dtype_from_proto
from stepd.v1 import run_pb2, shard_pb2

# Plans for contributions that leave parameters out, kept for the next step; models freeze few sets of layers in turn.
PLANS_KEPT: Final = 8


class Piece(NamedTuple):
    """Bytes of one parameter in C order; `part` None is all of them."""

    parameter: int
    part: slice | None


class PushChunk(NamedTuple):
    """A chunk that is yet to be filled.

    Attributes:
        offset: of its first element in the contribution's ranges laid end to end.
        payload_bytes: of all pieces together.
        pieces: what to lay end to end.
    """

    offset: int
    payload_bytes: int
    pieces: tuple[Piece, ...]

    def encode(self, views: Mapping[int, Array]) -> bytes:
        """The message, from the array of each parameter."""
        return wire.encode_chunk(self.offset, self.payload_bytes, self._pieces(views))

    def encode_as(self, encoding: Encoding, views: Mapping[int, Array]) -> bytes:
        """The message in an encoding."""
        pieces = self._pieces(views)
        values = np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), encodings.F4)
        return encoding.message(self.offset, values)

    def _pieces(self, arrays: Mapping[int, Array]) -> list[Any]:
        # Not a view of each: there may be ten thousand, and the garbage collector would look at all of them.
        return [arrays[p] if part is None else bytes_of(arrays[p])[part] for p, part in self.pieces]


class ShardPush(NamedTuple):
    """What one shard is sent of a contribution.

    Attributes:
        ranges: of the shard's flat space, ascending and not adjacent.
        chunks: in order.
    """

    ranges: tuple[shard_pb2.Range, ...]
    chunks: tuple[PushChunk, ...]

    @property
    def payload_bytes(self) -> int:
        return sum(chunk.payload_bytes for chunk in self.chunks)

    def messages(self, views: Mapping[int, Array], encoding: Encoding | None = None) -> Iterator[bytes]:
        """The messages that hold it, made one by one."""
        if encoding is not None:
            return (chunk.encode_as(encoding, views) for chunk in self.chunks)
        return (chunk.encode(views) for chunk in self.chunks)


class Plan:
    """The layout of one run as its workers use it.

    Attributes:
        parameters: of the run, by id.
        dtype: of gradients, and of parameters in flat spaces.
        shards: the slices of each shard in the order of its flat space.
        targets: where each is reached, when the plan was made.
        version: of the layout.
    """

    def __init__(self, layout: run_pb2.Layout, parameters: Sequence[ParameterSpec]) -> None:
        self.parameters = tuple(parameters)
        self.dtype: DType = dtype_from_proto(layout.dtype, "the layout")
        self.shards: tuple[tuple[Slice, ...], ...] = tuple(slices_of(shard) for shard in layout.shards)
        self.targets = tuple(shard.target for shard in layout.shards)
        self.version: int = layout.version
        self._check()
        self._pushes = lru_cache(PLANS_KEPT)(self._make_pushes)

    def pushes(self, held: Iterable[int] | None = None, encoding: Encoding | None = None) -> tuple[ShardPush, ...]:
        """What each shard is sent of a contribution that holds these parameters; None for all."""
        ids = None if held is None else frozenset(held)
        whole = ids is not None and len(ids) == len(self.parameters)
        return self._pushes(None if whole else ids, CHUNK_BYTES * (encoding.together if encoding else 1))

    def ranges(self, shard: int, held: frozenset[int] | None) -> tuple[shard_pb2.Range, ...]:
        """The slices of these parameters in a shard's flat space, adjacent ones merged."""
        merged: list[shard_pb2.Range] = []
        for piece, start in zip(self.shards[shard], flat_starts(self.shards[shard]), strict=False):
            if held is not None and piece.parameter not in held:
                continue
            if merged and merged[-1].start + merged[-1].count == start:
                merged[-1].count += piece.count
            else:
                merged.append(shard_pb2.Range(start=start, count=piece.count))
        return tuple(merged)

    def _make_pushes(self, held: frozenset[int] | None, chunk_bytes: int) -> tuple[ShardPush, ...]:
        return tuple(
            ShardPush(
                self.ranges(shard, held),
                tuple(self._chunks([s for s in slices if held is None or s.parameter in held], chunk_bytes)),
            )
            for shard, slices in enumerate(self.shards)
        )

    def _chunks(self, slices: Iterable[Slice], chunk_bytes: int) -> Iterable[PushChunk]:
        """Slices laid end to end, cut into chunks."""
        itemsize = self.dtype.itemsize
        room_of_chunk = chunk_bytes // itemsize
        begin = at = 0
        pieces: list[Piece] = []
        for held in slices:
            parameter, start, stop = held.parameter, held.start, held.stop
            while start < stop:
                end = min(stop, start + room_of_chunk - (at - begin))
                whole = end - start == self.parameters[parameter].size
                pieces.append(Piece(parameter, None if whole else slice(start * itemsize, end * itemsize)))
                at += end - start
                start = end
                if at - begin == room_of_chunk:
                    yield PushChunk(begin, (at - begin) * itemsize, tuple(pieces))
                    begin, pieces = at, []
        if pieces:
            yield PushChunk(begin, (at - begin) * itemsize, tuple(pieces))

    def _check(self) -> None:
        """Every element lies on a shard once: anything else would be lost or sent twice in silence."""
        found = [0] * len(self.parameters)
        for piece in (piece for slices in self.shards for piece in slices):
            if piece.parameter >= len(found) or piece.stop > self.parameters[piece.parameter].size:
                raise StepdError(f"the server's layout has {piece}, which is not in the run")
            found[piece.parameter] += piece.count
        for parameter, count in zip(self.parameters, found, strict=True):
            if count != parameter.size:
                raise StepdError(
                    f"the server's layout holds {count} of the {parameter.size} elements of {parameter.name!r}"
                )


def bytes_of(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a C-contiguous array where they lie."""
    if not array.size:
        return memoryview(b"")  # a view with an extent of 0 cannot be cast
    try:
        return array.data.cast("B")  # a quarter of what the way below takes, and there may be thousands
    except (ValueError, TypeError, BufferError):
        return array.reshape(math.prod(array.shape)).view(np.uint8).data  # a dtype that is not Python's
