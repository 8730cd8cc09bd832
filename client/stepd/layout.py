"""Where every element of a run lies: one pure function from sizes to slices.

All tensors are thought of as laid end to end in the order of their ids and cut into as many pieces as there are shards,
of equal bytes. A cut falls only between blocks: multiples of a fixed number of elements within each tensor. So every
block lies whole on one shard, whatever the number of shards, and what is computed by block is the same everywhere.
A tensor whose rule must see it whole is not cut at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

from stepd.limits import BLOCK_ELEMENTS
from stepd.v1 import run_pb2

_NONE: Final[Mapping[int, int]] = MappingProxyType({})


@dataclass(frozen=True, order=True)
class Slice:
    """Consecutive elements of one parameter, in C order; whole blocks, unless the parameter ends in it."""

    parameter: int
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


class Cut(NamedTuple):
    """A place between two blocks: before element `element` of tensor `parameter`."""

    parameter: int
    element: int


def lay_out(
    sizes: Sequence[int],
    element_bytes: Sequence[int],
    shards: int,
    *,
    block: int = BLOCK_ELEMENTS,
    whole: Mapping[int, int] = _NONE,
) -> tuple[tuple[Slice, ...], ...]:
    """Divide tensors among shards.

    Args:
        sizes: elements of each tensor, by id. Empty tensors get no slices.
        element_bytes: what one element costs a shard, by id: its parameter, buffers and accumulator.
        shards: how many pieces to make. A piece may be empty when there are fewer blocks than shards.
        block: tensors are cut only at multiples of this.
        whole: tensors that are not cut, by id, with what they cost a shard in all, in place of `element_bytes`.

    Returns:
        For each shard its slices in order. Pieces differ from an equal share by less than the largest block, or the
        largest tensor that is not cut.
    """
    each = zip(sizes, element_bytes, strict=True)
    ends = list(accumulate(whole.get(id_, size * cost) for id_, (size, cost) in enumerate(each)))
    total = ends[-1] if ends else 0
    last = Cut(len(sizes), 0)
    inner = (_nearest_cut(total * i // shards, sizes, element_bytes, ends, block, whole) for i in range(1, shards))
    cuts = [Cut(0, 0), *inner, last]
    return tuple(tuple(_between(a, b, sizes)) for a, b in pairwise(cuts))


def _nearest_cut(
    at_byte: int,
    sizes: Sequence[int],
    element_bytes: Sequence[int],
    ends: list[int],
    block: int,
    whole: Mapping[int, int],
) -> Cut:
    """The place between blocks that is nearest to a byte of the tensors laid end to end."""
    tensor = bisect_right(ends, at_byte)
    if tensor == len(sizes):
        return Cut(len(sizes), 0)
    begin = ends[tensor - 1] if tensor else 0
    into = at_byte - begin
    if tensor in whole:
        return Cut(tensor if into <= ends[tensor] - at_byte else tensor + 1, 0)
    step = block * element_bytes[tensor]
    below = into // step
    low, high = below * block, min((below + 1) * block, sizes[tensor])
    nearest = low if into - low * element_bytes[tensor] <= high * element_bytes[tensor] - into else high
    return Cut(tensor + 1, 0) if nearest == sizes[tensor] else Cut(tensor, nearest)


def _between(a: Cut, b: Cut, sizes: Sequence[int]) -> Iterable[Slice]:
    for parameter in range(a.parameter, min(b.parameter + 1, len(sizes))):
        start = a.element if parameter == a.parameter else 0
        stop = b.element if parameter == b.parameter else sizes[parameter]
        if stop > start:
            yield Slice(parameter, start, stop - start)


def to_proto(
    pieces: Iterable[Iterable[Slice]],
    targets: Sequence[str],
    dtype: run_pb2.DType,
    block: int = BLOCK_ELEMENTS,
) -> run_pb2.Layout:
    """The layout as it goes over the wire."""
    return run_pb2.Layout(
        shards=[
            run_pb2.ShardLayout(
                slices=[run_pb2.Slice(parameter=s.parameter, start=s.start, count=s.count) for s in piece],
                target=target,
            )
            for piece, target in zip(pieces, targets, strict=True)
        ],
        block_elements=block,
        dtype=dtype,
    )


def extend(before: run_pb2.Layout, tail: run_pb2.Layout) -> run_pb2.Layout:
    """The next version of a layout, which holds further tensors as well.

    They are laid out by themselves, and each shard has its slices of them after those that it has already: nothing
    that is there moves, and every offset keeps its meaning.

    Args:
        before: as it is.
        tail: of the further tensors only, with ids that follow those of `before`.
    """
    after = run_pb2.Layout()
    after.CopyFrom(before)
    after.version += 1
    for shard, more in zip(after.shards, tail.shards, strict=True):
        shard.slices.extend(more.slices)
    return after


def slices_of(shard: run_pb2.ShardLayout) -> tuple[Slice, ...]:
    """The slices of one shard as they came over the wire."""
    return tuple(Slice(s.parameter, s.start, s.count) for s in shard.slices)


def flat_starts(slices: Sequence[Slice]) -> list[int]:
    """Offset of each slice in the shard's flat space, and the end of the last: one more number than slices."""
    return list(accumulate((s.count for s in slices), initial=0))
