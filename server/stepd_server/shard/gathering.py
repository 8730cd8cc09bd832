"""Gathering the contributions of one attempt of one round into the accumulator. No I/O, no waiting.

Contributions come in chunks, in any interleaving; each contribution ascends through the flat space. Its *frontier* is
the flat place of the first element that it has yet to bring: whatever lies below everybody's frontier is complete, and
is summed while it is still in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, MissingGradient
from stepd.rules.base import Array
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.accumulating import Accumulating, Call, Loops
from stepd_server.shard.coverage import Track
from stepd_server.shard.gathered import Gathered
from stepd_server.shard.plan import Bools, Counts, Piece, Span
from stepd_server.shard.sums import Shaping, Summing, clip_limit, clip_norm_type

Key = tuple[str, int]

# Spans that are summed in one go: more than a chunk completes, and still but a few milliseconds.
_SPANS_AT_ONCE: Final = 16


def key_of(member: round_pb2.Member) -> Key:
    """What tells memberships apart."""
    return member.worker, member.incarnation


class Contribution:
    """What one member has brought to an attempt."""

    def __init__(self, member: round_pb2.Member, position: int) -> None:
        self.member = member
        # In the order of ranks.
        self.position = position
        # Counts those of the membership; and whether that is all the name it has.
        self.sequence = 0
        self.for_any_round = False
        self.track: Track | None = None
        self.touched: Bools | None = None
        # What its elements are multiplied by: its own weight in weighted runs, what the coordinator says in others.
        self.weight = 1.0
        # Streams that bring it now: one that is sent again may overlap with a broken one.
        self.streams = 0
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
        in_turn: it takes one contribution, which is selected among those that wait.
        selected: that one, once it is known.
        closed: it begins no more contributions, but for those that are selected.
        changes: grows with what changes who contributes, who is sending, and whose contribution is whole.
        quarantined: members whose contribution to an earlier attempt was left out.
        earlier: whose were whole here in earlier attempts; None: nobody's.
        given_up: what has begun here and does not count, for its member has sent another: the attempt is to start over.
        spans: of what has been touched; None until every member's contribution has begun.
    """

    def __init__(
        self,
        piece: Piece,
        accumulator: Array,
        updates: Counts,
        request: shard_control_pb2.RoundToGather,
        loops: Loops | None = None,
        earlier: shard_control_pb2.EarlierAttempts | None = None,
    ) -> None:
        self.id = (request.id.round, request.id.attempt)
        self.deterministic = request.deterministic
        self.contributions = {key_of(m): Contribution(m, i) for i, m in enumerate(request.members)}
        self.quarantined = {key_of(m) for m in request.quarantined}
        self.in_turn = request.in_turn
        self.selected: tuple[Key, int] | None = None
        self.closed = request.in_turn
        self.changes = 0
        self.earlier = earlier
        self.given_up: list[round_pb2.ContributionName] = []
        self._final = False
        self._refused: dict[Key, shard_control_pb2.RefusedContribution] = {}
        self.spans: list[Span] | None = None
        self.touched: Bools = np.zeros(len(piece.slices), np.bool_)
        self._order = list(self.contributions.values())
        self._piece = piece
        self._updates = updates
        self._clip = request.clip
        self._reduction = request.reduction
        self._sum = Accumulating(piece, accumulator, loops)
        if request.HasField("selected"):
            self.take([request.selected])

    # --- Who contributes ----------------------------------------------------------------------------------------

    def close(self) -> list[round_pb2.Member]:
        """Begin no more; give whose contributions have begun."""
        self.closed = True
        return [c.member for c in self._order if c.track is not None]

    def take(
        self,
        selected: Sequence[shard_control_pb2.SelectedContribution],
        refused: Sequence[shard_control_pb2.RefusedContribution] = (),
    ) -> None:
        """These are the contributions that it takes, all of them and for good. May be repeated."""
        self._refused.update((key_of(one.name.member), one) for one in refused)
        self.changes += 1
        if self._final or not selected:
            return
        self._final = self.closed = True
        if self.in_turn:
            (one,) = selected
            contribution = Contribution(one.name.member, 0)
            contribution.weight = one.scale
            self.selected = (key_of(one.name.member), one.name.sequence)
            self._order = [contribution]
        else:
            taken = {key_of(one.name.member) for one in selected}
            self._order = [c for c in self._order if key_of(c.member) in taken]
        self.contributions = {key_of(c.member): c for c in self._order}
        self._start_summing()

    def fate(self, header: shard_pb2.PushHeader) -> shard_pb2.ReceiptStatus | None:
        """What becomes of a contribution to it: ACCEPTED: it may begin; None: that cannot be said yet."""
        key = key_of(header.member)
        if self.in_turn:
            if self.selected == (key, header.sequence):
                return shard_pb2.RECEIPT_STATUS_ACCEPTED
            refused = self._refused.get(key)
            return refused.status if refused and header.sequence <= refused.name.sequence else None
        contribution = self.contributions.get(key)
        if contribution is None:
            if key in self.quarantined:
                return shard_pb2.RECEIPT_STATUS_QUARANTINED
            # What is for this very round is late when that is decided: until then it may start over with it.
            return None if header.HasField("id") else shard_pb2.RECEIPT_STATUS_LATE
        waits = self.closed and not self._final and contribution.track is None
        return None if waits else shard_pb2.RECEIPT_STATUS_ACCEPTED

    # --- What they bring ----------------------------------------------------------------------------------------

    def supersedes(self, header: shard_pb2.PushHeader) -> bool:
        """Whether a contribution is another than what has begun here of its member."""
        contribution = self.contributions[key_of(header.member)]
        begun, sequence = contribution.track is not None, contribution.sequence
        other = begun and 0 < sequence != header.sequence > 0
        if other and header.sequence > sequence:
            self.given_up.append(round_pb2.ContributionName(member=contribution.member, sequence=sequence))
            self.changes += 1
        return other

    def begin(self, header: shard_pb2.PushHeader) -> Contribution:
        """The member's contribution is on its way; again, if it was cut off before."""
        contribution = self.contributions[key_of(header.member)]
        contribution.sequence, contribution.for_any_round = header.sequence, not header.HasField("id")
        ranges, touched = check_ranges(self._piece, header)
        if contribution.touched is not None:
            if not np.array_equal(touched, contribution.touched):
                raise InvalidArgument("a contribution that is sent again must hold the same ranges", reason="BAD_CHUNK")
        else:
            contribution.track = Track(ranges)
            contribution.touched = touched
            if self._reduction == run_pb2.REDUCTION_WEIGHTED:
                contribution.weight = _checked_weight(header.weight)
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
        finite = True
        for start, part, others in self._parts(contribution, data):
            finite &= self._sum.add(start, part, contribution.weight, others, _SPANS_AT_ONCE)
        self.added(contribution, data, finite=finite)

    def adding(self, contribution: Contribution, data: Array, threads: int) -> list[list[Call]] | None:
        """Calls that add the contribution's next elements; None if they go to several places, and `add` is to be used.

        When they are made `added` is to be told; nothing else is added or summed before.

        Args:
            threads: that make calls of one list at the same time, when those of the list before are made.
        """
        parts = list(self._parts(contribution, data))
        if len(parts) != 1:
            return None
        ((start, part, others),) = parts
        return self._sum.calls(start, part, contribution.weight, others, _SPANS_AT_ONCE, threads)

    def added(self, contribution: Contribution, data: Array, *, finite: bool) -> None:
        """The contribution's next elements are added."""
        assert contribution.track is not None
        if not finite:
            contribution.nonfinite = self._parameter_of_first_nonfinite(contribution, data)
        contribution.added += data.size
        contribution.frontier = contribution.track.frontier(contribution.added, self._piece.size)
        self._sum_complete()

    def _parts(self, contribution: Contribution, data: Array) -> Iterator[tuple[int, Array, int]]:
        """Where next elements go in the flat space, each with the least frontier of the others."""
        assert contribution.track is not None
        # Once something is not finite this attempt is never applied, and the values need go nowhere.
        if contribution.nonfinite is None:
            others = min((c.frontier for c in self._order if c is not contribution), default=self._piece.size)
            for start, stop, at in contribution.track.flat(contribution.added, data.size):
                yield start, data[at : at + stop - start], others

    def finish(self, contribution: Contribution) -> None:
        """The contribution is whole."""
        contribution.whole = True
        self.changes += 1

    @property
    def round_id(self) -> round_pb2.RoundId:
        return round_pb2.RoundId(round=self.id[0], attempt=self.id[1])

    @property
    def complete(self) -> bool:
        """Whether all that it takes is here."""
        return bool(self._order) and all(c.whole for c in self._order)

    def sum_some(self) -> bool:
        """Sum some of what is complete and has not been summed; whether there may be more."""
        return self.spans is not None and not self._sum_complete()

    @property
    def awaited(self) -> list[round_pb2.Member]:
        """Members whose contribution is not whole."""
        return [c.member for c in self._order if not c.whole]

    def sequences(self, *, for_any_round: bool = False) -> dict[Key, int]:
        """By member, the sequence of its contribution.

        Args:
            for_any_round: only of those that were not sent for this very round.
        """
        return {
            key: c.sequence
            for key, c in self.contributions.items()
            if c.sequence and (c.for_any_round or not for_any_round)
        }

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
        """What the coordinator decides by. Only when complete, and all is summed."""
        assert self.complete
        nonfinite = [
            round_pb2.NonfiniteContribution(member=c.member, parameter=c.nonfinite)
            for c in self._order
            if c.nonfinite is not None
        ]
        sequences = [] if self.in_turn else [c.sequence for c in self._order]
        if nonfinite:
            return round_pb2.GatheredSums(nonfinite=nonfinite, sequences=sequences)
        summing = self._sum.finish()
        return round_pb2.GatheredSums(
            run_norms=[part.to_proto() for part in summing.run_norms],
            group_norms=[part.to_proto() if part else round_pb2.NormPart() for part in summing.group_norms],
            overflow=summing.overflow,
            sequences=sequences,
        )

    def _start_summing(self) -> None:
        if self.spans is not None or any(c.track is None for c in self._order):
            return
        self.spans = self._piece.spans(self.touched, self._updates)
        group_p = tuple(
            clip_norm_type(g.clip) if g.clip.HasField("max_norm") else None for g in self._piece.spec.groups
        )
        summing = Summing(self.shaping, clip_norm_type(self._clip), group_p)
        self._sum.begin_sums(self.spans, summing)

    def _sum_complete(self) -> bool:
        """Sum what is complete and has not been summed, but no more at once than keeps up with a chunk."""
        return self._sum.sum_to(min(c.frontier for c in self._order), _SPANS_AT_ONCE)

    def _parameter_of_first_nonfinite(self, contribution: Contribution, data: Array) -> int:
        assert contribution.track is not None
        first = int(np.argmin(np.isfinite(data)))
        return self._piece.parameter_at(contribution.track.frontier(contribution.added + first, self._piece.size))


def check_ranges(piece: Piece, header: shard_pb2.PushHeader) -> tuple[list[tuple[int, int]], Bools]:
    """The ranges [start, stop) of a contribution, and which slices they are; an error if they are not as they must."""
    ranges = [(r.start, r.start + r.count) for r in header.ranges]
    touched = piece.covered(ranges)
    if piece.spec.missing == run_pb2.MISSING_POLICY_ERROR and not touched.all():
        parameter = piece.slices[int(np.argmin(touched))].parameter
        name = piece.spec.parameters[parameter].name
        raise MissingGradient(
            f"no gradient for parameter {name!r}, and the run takes contributions only with all of them",
            parameter=name,
        )
    return ranges, touched


def _checked_weight(weight: float) -> float:
    if not 0 < weight < math.inf:
        raise InvalidArgument(
            f"a contribution to a weighted run must have a positive finite weight, got {weight}",
            field="weight",
            given=weight,
        )
    return weight


def restarted(run: str, round_number: int, attempt: int, *, in_turn: bool | None = None) -> Aborted:
    """The error for what belongs to an attempt that is over.

    Args:
        in_turn: how the next one takes contributions; None: that is not known yet.
    """
    return Aborted(
        f"run {run!r}: round {round_number} is gathered again as attempt {attempt}",
        reason="ROUND_RESTARTED",
        run=run,
        round=round_number,
        attempt=attempt,
        **({} if in_turn is None else {"in_turn": int(in_turn)}),
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
