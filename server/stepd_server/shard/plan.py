"""What a shard's piece of a run is made of, derived once from the spec and the layout. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from stepd.averages import Average
from stepd.errors import InvalidArgument
from stepd.layout import Slice, flat_starts, slices_of
from stepd.rules import Reach, Rule, Shape
from stepd.specs import average_from_proto, optimizer_from_proto
from stepd.v1 import run_pb2

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Span:
    """Consecutive elements of the flat space that are worked on together: one block, or several small tensors; or a
    tensor whose rule must see it whole.

    Attributes:
        start, stop: in the flat space.
        group: whose rule applies.
        slice: index of the first slice in it; all have had the same number of updates.
        blocks: where in the span each block begins, relative to `start`: sums are rounded once for each block.
    """

    start: int
    stop: int
    group: int
    slice: int
    blocks: Counts


@dataclass(frozen=True)
class GroupPiece:
    """The part of a group that lies on this shard: one stretch, as parameters are in the order of their groups.

    Attributes:
        rule: with the group's own hyperparameters.
        start, stop: in the flat space.
        first: index of its first slice.
        shapes: of the parameters of its slices.
    """

    rule: Rule
    start: int
    stop: int
    first: int
    shapes: tuple[Shape, ...]

    @cached_property
    def buffer_sizes(self) -> tuple[int, ...]:
        """Elements of each of the rule's buffers."""
        if self.rule.reach is Reach.WHOLE:
            return tuple(starts[-1] for starts in self.buffer_starts)
        return (self.stop - self.start,) * len(self.rule.buffers())

    @cached_property
    def buffer_starts(self) -> tuple[list[int], ...]:
        """By buffer: where in it each slice's own begins, and where the last one ends."""
        return tuple(
            list(accumulate((buffer.size(shape) for shape in self.shapes), initial=0)) for buffer in self.rule.buffers()
        )

    def places(self, span: Span) -> list[slice]:
        """By buffer: where in it a span's elements have theirs."""
        return self.stretches(span, span)

    def stretches(self, first: Span, last: Span) -> list[slice]:
        """By buffer: where in it the elements from one span to another have theirs."""
        if self.rule.reach is Reach.WHOLE:
            begin, end = first.slice - self.first, last.slice - self.first + 1
            return [slice(starts[begin], starts[end]) for starts in self.buffer_starts]
        return [slice(first.start - self.start, last.stop - self.start)] * len(self.buffer_sizes)


@dataclass(frozen=True)
class Piece:
    """A shard's piece of a run.

    Attributes:
        spec: of the run.
        slices: laid end to end, they are the flat space.
        block: elements in a block.
        dtype: of the master parameters, buffers and gradients.
        version: of the layout.
    """

    spec: run_pb2.RunSpec
    slices: tuple[Slice, ...]
    block: int
    dtype: np.dtype[Any]
    version: int = 0

    @classmethod
    def of(cls, spec: run_pb2.RunSpec, layout: run_pb2.Layout, index: int) -> Piece:
        if index >= len(layout.shards):
            raise InvalidArgument(
                f"run {spec.name!r} is laid out over {len(layout.shards)} shards, this is shard {index}", given=index
            )
        dtype = np.dtype("<f8") if layout.dtype == run_pb2.D_TYPE_FLOAT64 else np.dtype("<f4")
        return cls(spec, slices_of(layout.shards[index]), layout.block_elements, dtype, layout.version)

    @cached_property
    def starts(self) -> list[int]:
        """Where each slice begins in the flat space, and where the last one ends."""
        return flat_starts(self.slices)

    @property
    def size(self) -> int:
        """Elements in the flat space."""
        return self.starts[-1]

    @cached_property
    def block_begins(self) -> Counts:
        """Where each block begins in the flat space, and where the last one ends. Empty slices have none."""
        begins = [np.arange(start, stop, self.block, dtype=np.int64) for start, stop in pairwise(self.starts)]
        return np.concatenate([*begins, np.array([self.size], np.int64)])

    @cached_property
    def groups(self) -> tuple[GroupPiece, ...]:
        of_slice = [self.group_of(i) for i in range(len(self.slices))]
        shapes = [tuple(self.spec.parameters[s.parameter].shape) for s in self.slices]
        pieces = []
        for index, group in enumerate(self.spec.groups):
            first, last = bisect_left(of_slice, index), bisect_right(of_slice, index)
            rule = optimizer_from_proto(group.optimizer)
            pieces.append(GroupPiece(rule, self.starts[first], self.starts[last], first, tuple(shapes[first:last])))
        return tuple(pieces)

    @cached_property
    def average(self) -> Average | None:
        """The run's average of its parameters."""
        return average_from_proto(self.spec.average) if self.spec.HasField("average") else None

    @cached_property
    def scalars(self) -> int:
        """The most scalars that a rule keeps for a parameter."""
        return max((len(group.rule.scalars()) for group in self.groups), default=0)

    @property
    def scalars_file(self) -> str:
        """Of this version's own: with a further group the rows may be longer."""
        return f"scalars.{self.version}" if self.version else "scalars"

    def group_of(self, slice_index: int) -> int:
        return self.spec.parameters[self.slices[slice_index].parameter].group

    def parameter_at(self, offset: int) -> int:
        """Id of the parameter that the element at `offset` belongs to."""
        return self.slices[bisect_right(self.starts, offset) - 1].parameter

    def covered(self, ranges: Iterable[tuple[int, int]]) -> Bools:
        """Which slices lie in ranges [start, stop). Raise if a range is not of whole slices, or they do not ascend."""
        touched = np.zeros(len(self.slices), np.bool_)
        at = 0
        for start, stop in ranges:
            first, last = bisect_left(self.starts, start), bisect_left(self.starts, stop)
            whole = last < len(self.starts) and self.starts[first] == start and self.starts[last] == stop
            if not whole or not at <= start < stop:
                raise InvalidArgument(
                    f"ranges must ascend and be of whole slices of the shard's layout, got [{start}, {stop})",
                    reason="BAD_CHUNK",
                    given=f"[{start}, {stop})",
                )
            touched[first:last] = True
            at = stop
        return touched

    def spans(self, touched: Bools, updates: Counts) -> list[Span]:
        """The spans of the touched slices, in order.

        Neighbours share a span while together they are no larger than a block, so that ten thousand small tensors cost
        what one large one does; but only if they share group and number of updates, which is all that a rule sees,
        unless it keeps scalars or looks beyond elements: these may differ from parameter to parameter.
        """
        # From step to step mostly the same are touched, and all counts go up together.
        counts = updates[touched]
        known = (touched.tobytes(), (counts - counts[:1]).tobytes())
        if known not in self._spans:
            self._spans.clear()
            self._spans[known] = self._cut(touched, updates)
        return self._spans[known]

    @cached_property
    def _spans(self) -> dict[tuple[bytes, bytes], list[Span]]:
        """The spans that were asked for last."""
        return {}

    def _cut(self, touched: Bools, updates: Counts) -> list[Span]:
        alone = [bool(group.rule.scalars()) or group.rule.reach is not Reach.ELEMENTWISE for group in self.groups]
        spans: list[Span] = []
        blocks: list[int] = []
        start = stop = slice_index = -1
        key: tuple[int, int, int] | None = None

        def close() -> None:
            if key is not None:
                spans.append(Span(start, stop, key[0], slice_index, np.array(blocks, np.int64)))

        for i in np.flatnonzero(touched).tolist():
            group = self.group_of(i)
            mine = (group, int(updates[i]), i if alone[group] else -1)
            for begin in range(self.starts[i], self.starts[i + 1], self.block):
                end = min(begin + self.block, self.starts[i + 1])
                if key == mine and begin == stop and end - start <= self.block:
                    blocks.append(begin - start)
                else:
                    close()
                    start, slice_index, key, blocks = begin, i, mine, [0]
                stop = end
        close()
        return spans

    def joined(self, spans: Iterable[Span]) -> list[Span]:
        """The spans that rules update: as they are, but of rules that must see a tensor whole, each whole tensor."""
        joined: list[Span] = []
        for span in spans:
            if self.groups[span.group].rule.reach is not Reach.WHOLE:
                joined.append(span)
            elif span.start == self.starts[span.slice]:
                stop = self.starts[span.slice + 1]
                blocks = np.arange(0, stop - span.start, self.block)
                joined.append(Span(span.start, stop, span.group, span.slice, blocks))
        return joined
