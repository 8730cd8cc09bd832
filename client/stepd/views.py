"""Parameters that are read where a shard has them, in memory that it shares, in place of being copied.

A view is good for as long as the shard writes nothing over it. In a run in which every round waits for every member
that is until the worker that looks at it contributes to the next round: so views are given by `step` alone, to whoever
has contributed, and only in such runs. What can come between (the worker's lease ends; the owner lets rounds be closed
without everybody) is seen by the next call: the journal of the shard says how many rounds have begun to be applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stepd import wire
from stepd.buffers import Array, Picture, Segment
from stepd.errors import StepdError
from stepd.layout import flat_starts
from stepd.state_space import StatePicture
from stepd.transfer import Plan
from stepd.v1 import run_pb2, shard_pb2

if TYPE_CHECKING:
    from stepd.sharing import Link


class Seen(NamedTuple):
    """What is looked at of one shard.

    Attributes:
        link: with the shard.
        round: rounds decided when it was read.
    """

    link: Link
    round: int

    @property
    def gone(self) -> bool:
        """Whether it may have been written over."""
        return self.link.begun > self.round


class ViewPicture(Picture):
    """All parameters, in place where a shard on this host has them whole and in their own dtype, copied otherwise.

    Attributes:
        seen: by shard: what the latest pull has left in place.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, None, None)
        self.seen: dict[int, Seen] = {}
        # By shard: where parameters lie in its flat space that may stay there; and what is to be copied all the same.
        self._places: list[dict[int, int]] = []
        self._rest: list[tuple[Segment, ...]] = []
        self._known: dict[int, tuple[Link, dict[str, Array]]] = {}
        for shard, slices in enumerate(plan.shards):
            places: dict[int, int] = {}
            for piece, start in zip(slices, flat_starts(slices), strict=False):
                spec = plan.parameters[piece.parameter]
                if piece.count == spec.size and spec.dtype == plan.dtype:
                    places[piece.parameter] = start
            self._places.append(places)
            self._rest.append(self._segments_of(shard, without=places.keys()))

    def leave_in_place(self, shard: int, seen: Seen, regions: Sequence[Array]) -> Looker:
        """Takes what a shard says to be final, and copies only what cannot stay there."""
        self.seen[shard] = seen
        size = sum(piece.count for piece in self.plan.shards[shard])
        return Looker(seen.link.parameters, self._rest[shard], regions, size)

    def forget(self, shard: int) -> None:
        """What the shard has is sent, or copied."""
        self.seen.pop(shard, None)

    def arrays_in(self, buffer: Array) -> dict[str, Array]:
        """The parameters by name, none of which can be written to."""
        arrays = super().arrays_in(buffer)
        for array in arrays.values():
            array.setflags(write=False)
        for shard, seen in self.seen.items():
            arrays.update(self._views(shard, seen.link))
        return arrays

    def _views(self, shard: int, link: Link) -> Mapping[str, Array]:
        known = self._known.get(shard)
        if known is None or known[0] is not link:
            specs, flat = self.plan.parameters, link.parameters
            views = {
                specs[id_].name: flat[start : start + specs[id_].size].reshape(specs[id_].shape)
                for id_, start in self._places[shard].items()
            }
            known = self._known[shard] = (link, views)
        return known[1]


class Looker:
    """What of one shard's parameters is not left in place goes where it belongs."""

    def __init__(self, flat: Array, rest: Sequence[Segment], regions: Sequence[Array], size: int) -> None:
        self._flat = flat
        self._rest = rest
        self._regions = regions
        self._size = size
        self._at = 0

    def take(self, chunk: wire.Chunk) -> None:
        """The next elements are final. StepdError if they are not the next."""
        if chunk.offset != self._at:
            raise StepdError(f"a shard shared elements from {chunk.offset} on in place of {self._at}")
        self._at += chunk.data.nbytes // self._flat.itemsize
        if self.complete:
            with np.errstate(over="ignore"):
                for start, stop, region, at in self._rest:
                    self._regions[region][at : at + stop - start] = self._flat[start:stop]

    @property
    def complete(self) -> bool:
        return self._at >= self._size


def receiver_of(
    picture: Picture | StatePicture,
    shard: int,
    regions: Sequence[Array],
    link: Link | None,
    header: shard_pb2.PullHeader,
) -> Any:
    """What takes the chunks of one stream from a shard.

    Args:
        picture: what is wanted.
        shard: whose stream.
        regions: where it goes.
        link: the shard shares its memory.
        header: of the stream.
    """
    if isinstance(picture, ViewPicture):
        if link is not None:
            return picture.leave_in_place(shard, Seen(link, header.round), regions)
        picture.forget(shard)
    return picture.receiver(shard, regions)


def policy_of(spec: run_pb2.RunSpec) -> tuple[bool, bool]:
    """Whether a run takes contributions in turn, and whether every round waits for every member."""
    in_turn = spec.sync.WhichOneof("turns") is not None
    return in_turn, not in_turn and not spec.sync.HasField("quorum")
