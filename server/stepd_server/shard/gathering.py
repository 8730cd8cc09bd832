"""Gathering the contributions of one attempt of one round into the accumulator. No I/O, no waiting.

Contributions come in chunks, in any interleaving; each contribution ascends through the flat space. Its *frontier* is
the flat place of the first element that it has yet to bring: whatever lies below everybody's frontier is complete, and
is summed while it is still in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, MissingGradient, StepdError
from stepd.rules.base import Array
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.coverage import Coverage, Track
from stepd_server.shard.gathered import Gathered
from stepd_server.shard.plan import Bools, Counts, Piece, Span
from stepd_server.shard.sums import Shaping, Summing, clip_limit, clip_norm_type

Key = tuple[str, int]


def key_of(member: round_pb2.Member) -> Key:
    """What tells memberships apart."""
    return member.worker, member.incarnation


class Contribution:
    """What one member has brought to an attempt."""

    def __init__(self, member: round_pb2.Member, position: int) -> None:
        self.member = member
        # In the order of ranks.
        self.position = position
        self.track: Track | None = None
        self.touched: Bools | None = None
        self.weight = 1.0
        # Elements added, of those in its ranges.
        self.added = 0
        # Flat place of the next.
        self.frontier = 0
        self.whole = False
        # Parameter of the first value that is not finite.
        self.nonfinite: int | None = None


class Gathering:
    """One attempt of one round.

    Attributes:
        id: of the attempt.
        contributions: by member, in the order of ranks.
        quarantined: members whose contribution to an earlier attempt was left out.
        spans: of what has been touched; None until every member's contribution has begun.
    """

    def __init__(
        self, piece: Piece, accumulator: Array, updates: Counts, request: shard_control_pb2.GatherRoundRequest
    ) -> None:
        self.id = (request.id.round, request.id.attempt)
        self.deterministic = request.deterministic
        self.contributions = {key_of(m): Contribution(m, i) for i, m in enumerate(request.members)}
        self.quarantined = {key_of(m) for m in request.quarantined}
        self.spans: list[Span] | None = None
        self.touched: Bools = np.zeros(len(piece.slices), np.bool_)
        self._order = list(self.contributions.values())
        self._piece = piece
        self._accumulator = accumulator
        self._updates = updates
        self._clip = request.clip
        self._reduction = request.reduction
        self._reached = Coverage()
        self._summing: Summing | None = None
        self._summed = 0

    def begin(self, header: shard_pb2.PushHeader) -> Contribution:
        """The member's contribution is on its way; again, if it was cut off before."""
        contribution = self.contributions[key_of(header.member)]
        ranges = [(r.start, r.start + r.count) for r in header.ranges]
        touched = self._piece.covered(ranges)
        if self._piece.spec.missing == run_pb2.MISSING_POLICY_ERROR and not touched.all():
            parameter = self._piece.slices[int(np.argmin(touched))].parameter
            name = self._piece.spec.parameters[parameter].name
            raise MissingGradient(
                f"no gradient for parameter {name!r}, and the run takes contributions only with all of them",
                parameter=name,
            )
        if contribution.touched is not None:
            if not np.array_equal(touched, contribution.touched):
                raise InvalidArgument("a contribution that is sent again must hold the same ranges", reason="BAD_CHUNK")
        else:
            contribution.track = Track(ranges)
            contribution.touched = touched
            contribution.weight = header.weight if self._reduction == run_pb2.REDUCTION_WEIGHTED else 1.0
            contribution.frontier = contribution.track.frontier(0, self._piece.size)
            self.touched |= touched
            self._start_summing()
            self._sum_complete()
        return contribution

    def turn(self, contribution: Contribution, count: int) -> bool:
        """Whether the next `count` elements may be added now: always, unless sums go by rank."""
        if not self.deterministic:
            return True
        assert contribution.track is not None
        stop = contribution.track.frontier(contribution.added + count - 1, self._piece.size) + 1
        return all(earlier.frontier >= stop for earlier in self._order[: contribution.position])

    def add(self, contribution: Contribution, data: Array) -> None:
        """Add the contribution's next elements."""
        assert contribution.track is not None
        if contribution.nonfinite is None and not _is_finite(data):
            contribution.nonfinite = self._parameter_of_first_nonfinite(contribution, data)
        # Once something is not finite this attempt is never applied, and the values need go nowhere.
        if contribution.nonfinite is None:
            with np.errstate(all="ignore"):
                for start, stop, at in contribution.track.flat(contribution.added, data.size):
                    self._add_flat(start, data[at : at + stop - start], contribution.weight)
        contribution.added += data.size
        contribution.frontier = contribution.track.frontier(contribution.added, self._piece.size)
        self._sum_complete()

    def finish(self, contribution: Contribution) -> None:
        """The contribution is whole."""
        contribution.whole = True

    @property
    def complete(self) -> bool:
        return all(c.whole for c in self._order)

    @property
    def awaited(self) -> list[round_pb2.Member]:
        """Members whose contribution is not whole."""
        return [c.member for c in self._order if not c.whole]

    @property
    def shaping(self) -> Shaping:
        """What makes the accumulated sum a gradient."""
        divisor = {
            run_pb2.REDUCTION_MEAN: float(len(self._order)),
            run_pb2.REDUCTION_SUM: 1.0,
            run_pb2.REDUCTION_WEIGHTED: math.fsum(c.weight for c in self._order),
        }[self._reduction]
        return Shaping(divisor, tuple(clip_limit(self._clip, group.clip) for group in self._piece.spec.groups))

    @property
    def gathered(self) -> Gathered:
        """What a decision to apply it takes. Only when complete."""
        return Gathered(self.id, self.shaping, self.touched)

    def sums(self) -> round_pb2.GatheredSums:
        """What the coordinator decides by. Only when complete."""
        assert self.complete
        nonfinite = [
            round_pb2.NonfiniteContribution(member=c.member, parameter=c.nonfinite)
            for c in self._order
            if c.nonfinite is not None
        ]
        if nonfinite:
            return round_pb2.GatheredSums(nonfinite=nonfinite)
        assert self._summing is not None
        self._summing.finish()
        return round_pb2.GatheredSums(
            run_norms=[part.to_proto() for part in self._summing.run_norms],
            group_norms=[part.to_proto() if part else round_pb2.NormPart() for part in self._summing.group_norms],
            overflow=self._summing.overflow,
        )

    def _add_flat(self, start: int, data: Array, weight: float) -> None:
        for low, high, reached in self._reached.add(start, start + data.size):
            piece, target = data[low - start : high - start], self._accumulator[low:high]
            if not reached and weight == 1.0:
                np.copyto(target, piece)
            elif not reached:
                np.multiply(piece, weight, out=target)
            elif weight == 1.0:
                target += piece
            else:
                target += piece * weight

    def _start_summing(self) -> None:
        if any(c.track is None for c in self._order):
            return
        self.spans = self._piece.spans(self.touched, self._updates)
        group_p = tuple(
            clip_norm_type(g.clip) if g.clip.HasField("max_norm") else None for g in self._piece.spec.groups
        )
        self._summing = Summing(self._piece.dtype, self.shaping, clip_norm_type(self._clip), group_p)

    def _sum_complete(self) -> None:
        """Sum the spans that are complete and have not been summed."""
        if self._summing is None or self.spans is None:
            return
        frontier = min(c.frontier for c in self._order)
        while self._summed < len(self.spans) and self.spans[self._summed].stop <= frontier:
            span = self.spans[self._summed]
            self._summing.add(span, self._accumulator[span.start : span.stop])
            self._summed += 1

    def _parameter_of_first_nonfinite(self, contribution: Contribution, data: Array) -> int:
        assert contribution.track is not None
        first = int(np.argmin(np.isfinite(data)))
        return self._piece.parameter_at(contribution.track.frontier(contribution.added + first, self._piece.size))


def _is_finite(data: Array) -> bool:
    """Whether all elements are finite: the sum of squares tells nearly always, and costs a fifth of looking at each."""
    with np.errstate(all="ignore"):
        return bool(math.isfinite(np.dot(data, data)) or np.isfinite(data).all())


def status_outside(
    header: shard_pb2.PushHeader, decision: round_pb2.Decision | None, gathering: Gathering | None
) -> shard_pb2.ReceiptStatus:
    """What became of a contribution to a round that is over or does not count its sender.

    Args:
        decision: the latest.
        gathering: what is gathered now.
    """
    key = key_of(header.member)
    if decision is not None and decision.id.round == header.id.round:
        if any(key_of(m) == key for m in decision.quarantined):
            return shard_pb2.RECEIPT_STATUS_QUARANTINED
        if any(key_of(m) == key for m in decision.members):
            return shard_pb2.RECEIPT_STATUS_DUPLICATE
    if gathering is not None and gathering.id[0] == header.id.round and key in gathering.quarantined:
        return shard_pb2.RECEIPT_STATUS_QUARANTINED
    return shard_pb2.RECEIPT_STATUS_LATE


def restarted(run: str, round_number: int, attempt: int) -> Aborted:
    """The error for what belongs to an attempt that is over."""
    return Aborted(
        f"run {run!r}: round {round_number} is gathered again as attempt {attempt}",
        reason="ROUND_RESTARTED",
        run=run,
        round=round_number,
        attempt=attempt,
    )


def layout_changed(run: str, version: int) -> Aborted:
    """The error for what goes by an older layout."""
    return Aborted(
        f"run {run!r} has version {version} of its layout: a group was added",
        reason="LAYOUT_CHANGED",
        run=run,
        layout_version=version,
    )


def not_shared(why: str) -> FailedPrecondition:
    """The error for memory that this shard cannot read."""
    return FailedPrecondition(f"no memory is shared with this worker: {why}", reason="NOT_SHARED")


def as_array(data: memoryview, dtype: np.dtype[Any]) -> Array:
    """The elements of a chunk where they lie; copied only if they lie misaligned, which NumPy is slow on."""
    array: Array = np.frombuffer(data, dtype)
    return array if array.flags.aligned else array.copy()


def members_text(members: Sequence[round_pb2.Member]) -> str:
    """Members by name and rank, for messages."""
    return ", ".join(f"{m.worker} (rank {m.rank})" for m in members) or "nobody"


def cut_short(at: int, size: int) -> StepdError:
    """The error for a stream that lacks elements."""
    return InvalidArgument(
        f"the stream ended after {at} of {size} elements", reason="BAD_CHUNK", expected=size, given=at
    )
