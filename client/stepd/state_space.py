"""Where the state of the optimizer lies: between one array for each buffer of each parameter, and the shards. Pure.

A shard's state space is, by group and then by buffer of the group's rule, the group's slices laid end to end
(`StateBuffer` in the contract).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stepd.buffers import Array, Receiver, Segment
from stepd.definitions import DType, RunSpec
from stepd.errors import StepdError
from stepd.layout import Slice
from stepd.limits import CHUNK_BYTES
from stepd.rules import Reach
from stepd.transfer import Piece, PushChunk, ShardPush
from stepd.v1 import shard_pb2


@dataclass
class OptimizerState:
    """What the rules of a run keep, by parameter.

    Attributes:
        updates: how often each was updated.
        scalars: of each, in the order of its rule.
        buffers: of each, in the order of its rule and in the buffer's own shape; None where it has none.
    """

    updates: list[int]
    scalars: list[tuple[float, ...]]
    buffers: list[list[Array | None]] = field(default_factory=list)


class _Key(NamedTuple):
    """One buffer of one parameter."""

    parameter: int
    buffer: int


class StatePicture:
    """The state space of every shard, and where its parts go: a region for each buffer of each parameter."""

    def __init__(self, spec: RunSpec, shards: Sequence[Sequence[Slice]], version: int = 0) -> None:
        """
        Args:
            spec: of the run.
            shards: the slices of each.
            version: of the layout.
        """
        self.version = version
        self._spec = spec
        self._slices = shards
        self.dtype: DType = spec.master
        self._region_of: dict[_Key, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        for id_, parameter in enumerate(spec.parameters):
            for index, buffer in enumerate(spec.groups[parameter.group].optimizer.buffers()):
                shape = buffer.shape(parameter.shape)
                if shape is not None:
                    self._region_of[_Key(id_, index)] = len(self._shapes)
                    self._shapes.append(shape)
        self._segments: list[tuple[Segment, ...]] = []
        self._buffers: list[list[tuple[int, str, int]]] = []
        for slices in shards:
            self._lay_out(slices)

    def _lay_out(self, slices: Sequence[Slice]) -> None:
        segments: list[Segment] = []
        buffers: list[tuple[int, str, int]] = []
        at = 0
        for g, group in enumerate(self._spec.groups):
            rule = group.optimizer
            own = [piece for piece in slices if self._spec.parameters[piece.parameter].group == g]
            for index, buffer in enumerate(rule.buffers()):
                begin = at
                for piece in own:
                    region = self._region_of.get(_Key(piece.parameter, index))
                    whole = rule.reach is Reach.WHOLE
                    count = buffer.size(self._spec.parameters[piece.parameter].shape) if whole else piece.count
                    if region is not None and count:
                        segments.append(Segment(at, at + count, region, 0 if whole else piece.start))
                        at += count
                buffers.append((g, buffer.name, at - begin))
        self._segments.append(tuple(segments))
        self._buffers.append(buffers)

    # --- Reading: as a Picture of parameters ------------------------------------------------------------------------

    @property
    def shards(self) -> list[int]:
        return list(range(len(self._segments)))

    def ranges(self, _: int) -> tuple[shard_pb2.Range, ...]:
        return ()

    def payload_bytes(self, shard: int) -> int:
        return sum(s.stop - s.start for s in self._segments[shard]) * self.dtype.itemsize

    def receiver(self, shard: int, regions: Sequence[Array]) -> Receiver:
        """Takes the chunks of one stream from a shard."""
        return Receiver(self._segments[shard], regions, self.dtype)

    def regions(self) -> list[Array]:
        """Room for everything."""
        return [np.empty(math.prod(shape), self.dtype) for shape in self._shapes]

    def check(self, shard: int, header: shard_pb2.PullHeader) -> None:
        """Raise unless a shard has what we take it to have."""
        theirs = [(b.group, b.name, b.count) for b in header.buffers]
        scalars = sum(self._scalars_of(piece) for piece in self._slices[shard])
        if (
            theirs != self._buffers[shard]
            or len(header.updates) != len(self._slices[shard])
            or len(header.scalars) != scalars
        ):
            raise StepdError(f"shard {shard} keeps {theirs}, expected {self._buffers[shard]}")

    def state(self, headers: dict[int, shard_pb2.PullHeader], regions: Sequence[Array]) -> OptimizerState:
        """What has been read."""
        state = self.blank()
        for shard, header in headers.items():
            scalars = iter(header.scalars)
            for piece, updates in zip(self._slices[shard], header.updates, strict=True):
                state.updates[piece.parameter] = updates
                state.scalars[piece.parameter] = tuple(next(scalars) for _ in range(self._scalars_of(piece)))
        for (id_, index), region in self._region_of.items():
            state.buffers[id_][index] = regions[region].reshape(self._shapes[region])
        return state

    def blank(self) -> OptimizerState:
        """The state before the first step, without arrays."""
        rules = [self._spec.groups[p.group].optimizer for p in self._spec.parameters]
        return OptimizerState(
            [0] * len(rules),
            [tuple(scalar.initial for scalar in rule.scalars()) for rule in rules],
            [[None] * len(rule.buffers()) for rule in rules],
        )

    # --- Writing ----------------------------------------------------------------------------------------------------

    def header(self, run: str, state_id: str, shard: int, state: OptimizerState) -> shard_pb2.StageStateHeader:
        slices = self._slices[shard]
        return shard_pb2.StageStateHeader(
            run=run,
            state_id=state_id,
            updates=[state.updates[piece.parameter] for piece in slices],
            scalars=[value for piece in slices for value in state.scalars[piece.parameter]],
        )

    def flat(self, state: OptimizerState) -> list[Array]:
        """Arrays by region, flat and as shards have them."""
        regions = []
        for id_, index in self._region_of:
            array = state.buffers[id_][index]
            assert array is not None
            regions.append(np.ascontiguousarray(array, self.dtype).reshape(-1))
        return regions

    def push(self, shard: int) -> ShardPush:
        """What a shard is sent; the pieces of its chunks name regions."""
        itemsize, room = self.dtype.itemsize, CHUNK_BYTES // self.dtype.itemsize
        chunks: list[PushChunk] = []
        pieces: list[Piece] = []
        begin = end = 0
        for segment in self._segments[shard]:
            start = segment.start
            while start < segment.stop:
                stop = min(segment.stop, begin + room)
                at = segment.at + start - segment.start
                pieces.append(Piece(segment.region, slice(at * itemsize, (at + stop - start) * itemsize)))
                start = end = stop
                if end - begin == room:
                    chunks.append(PushChunk(begin, room * itemsize, tuple(pieces)))
                    begin, pieces = end, []
        if pieces:
            chunks.append(PushChunk(begin, (end - begin) * itemsize, tuple(pieces)))
        return ShardPush((), tuple(chunks))

    def _scalars_of(self, piece: Slice) -> int:
        return len(self._spec.groups[self._spec.parameters[piece.parameter].group].optimizer.scalars())
