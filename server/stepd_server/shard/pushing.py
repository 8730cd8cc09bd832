"""Contributions that come to one run on a shard: which wait, which are taken in, and what the others are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from stepd import wire
from stepd.errors import InvalidArgument
from stepd.limits import CHUNK_BYTES_MAX, SHARED_BYTES_TAKEN
from stepd.rules.base import Array
from stepd.v1 import round_pb2, shard_pb2
from stepd_server.shard.accumulating import Call
from stepd_server.shard.counted import Receipt
from stepd_server.shard.gathering import Contribution, Gathering, as_array, check_ranges, restarted
from stepd_server.shard.loading import cut_short
from stepd_server.shard.pulling import Pulling
from stepd_server.shard.sharing import Lying
from stepd_server.shard.threads import THREADS, at_once

_ACCEPTED: Final = shard_pb2.RECEIPT_STATUS_ACCEPTED
_DUPLICATE: Final = shard_pb2.RECEIPT_STATUS_DUPLICATE
# More elements than this are added on all cores. A chunk that was sent is not worth it.
_ELEMENTS_AT_ONCE: Final = 1 << 19


class Pushing(Pulling):
    """A run's piece as those see it who contribute to its rounds. What carries the rounds out is in run.py."""

    async def push(self, header: shard_pb2.PushHeader, chunks: AsyncIterator[wire.Chunk]) -> shard_pb2.PushResponse:
        """Take one contribution."""
        if header.layout_version == self.arena.piece.version:
            # What a round could not take must not be offered to it.
            check_ranges(self.arena.piece, header)
        try:
            with self._holding.waiting(header):
                self._changed.notify()
                await self._wait(
                    lambda: self._fate(header) is not None, header.id.round if header.HasField("id") else None
                )
                # From here to the stream's being counted nothing else runs.
                receipt, gathering = self._fate(header), self._gathering
                assert receipt is not None
                if gathering is None or receipt.status != _ACCEPTED:
                    return self._receipt(receipt, header.member)
                if gathering.supersedes(header):
                    self._changed.notify()
                    await self._wait(lambda: self._gathering is not gathering, gathering.id[0])
                    self._check_current(gathering)
                contribution = gathering.begin(header)
                if contribution.whole:
                    return self._receipt(Receipt(_DUPLICATE, receipt.id), header.member)
                contribution.streams += 1
                self.phases.began(gathering.id)
        finally:
            self._changed.notify()  # whoever hears of what waits is to hear that this does not any more
        try:
            await self._bring(gathering, contribution, chunks)
        finally:
            contribution.streams -= 1
            gathering.changes += 1
            self._changed.notify()
        return self._receipt(receipt, header.member)

    async def _bring(self, gathering: Gathering, contribution: Contribution, chunks: AsyncIterator[wire.Chunk]) -> None:
        assert contribution.track is not None
        size, dtype, at = contribution.track.size, self.arena.piece.dtype, 0
        self._changed.notify()  # a contribution that holds little may have let others go ahead
        async for chunk in chunks:
            most = SHARED_BYTES_TAKEN if isinstance(chunk, Lying) else CHUNK_BYTES_MAX
            at += wire.check_chunk(chunk, at, size, dtype.itemsize, most)
            data = as_array(chunk.data, dtype)
            await self._add(gathering, contribution, data, at)
        if at != size:
            raise cut_short(at, size)
        self._check_current(gathering)
        if not contribution.whole:
            gathering.finish(contribution)
            self._had.add(gathering.id[0], contribution.member)
            self.phases.whole()

    async def _add(self, gathering: Gathering, contribution: Contribution, data: Array, stop: int) -> None:
        """Add the part of a chunk (which ends at `stop` of the contribution) that has not been added."""

        def may() -> bool:
            new = stop - contribution.added
            quiet = self._adding is None and not self._opening
            return self._gathering is not gathering or (quiet and (new <= 0 or gathering.turn(contribution, new)))

        if not may():
            # Not reading on holds the sender back; an early contribution takes no memory here.
            await self._wait(may, gathering.id[0])
        self._check_current(gathering)
        new = stop - contribution.added
        if new <= 0:
            return
        data = data[-new:]
        calls = gathering.adding(contribution, data, THREADS.count) if new > _ELEMENTS_AT_ONCE else None
        if calls is None:
            gathering.add(contribution, data)
        else:
            self._adding = asyncio.ensure_future(self._add_at_once(gathering, contribution, data, calls))
            # To the end, if the sender has gone: threads write to the accumulator.
            await asyncio.shield(self._adding)
        if gathering.deterministic:
            self._changed.notify()

    async def _add_at_once(
        self, gathering: Gathering, contribution: Contribution, data: Array, calls: Sequence[Sequence[Call]]
    ) -> None:
        try:
            bad = [found for some in calls for found in await at_once(some)]
            gathering.added(contribution, data, finite=not any(bad))
        finally:
            self._adding = None
            self._changed.notify()

    def _fate(self, header: shard_pb2.PushHeader) -> Receipt | None:
        """What is to become of a contribution: ACCEPTED: it may begin. None: that cannot be said yet."""
        self._check_alive()
        if known := self._counted.receipt(header):
            return known
        named, gathering = header.HasField("id"), self._gathering
        if named and header.id.round < self._round:
            if self._takes_turns:
                raise restarted(self.name, self._round, 0, in_turn=True)
            return Receipt(shard_pb2.RECEIPT_STATUS_LATE, header.id)
        if not self.has_layout(header.layout_version):
            return None
        if gathering is None or self._finishing is not None or (named and header.id.round > gathering.id[0]):
            return None
        if gathering.in_turn:
            self._check_sequence(header)
        if named:
            # What is for one round would be late for it after another's turn.
            if header.id.attempt < gathering.id[1] or gathering.in_turn:
                raise restarted(self.name, *gathering.id, in_turn=gathering.in_turn)
            if header.id.attempt > gathering.id[1]:
                return None
        status = gathering.fate(header)
        if status is None:
            return None
        refused = gathering.in_turn and status != _ACCEPTED
        return Receipt(status, None if refused else gathering.round_id)

    @property
    def _takes_turns(self) -> bool:
        """Whether rounds take contributions in turn now, as far as is known here."""
        if self._gathering is not None:
            return self._gathering.in_turn
        return self._decision is not None and bool(self._decision.counted)

    def _check_sequence(self, header: shard_pb2.PushHeader) -> None:
        if not header.sequence:
            raise InvalidArgument(
                f"run {self.name!r} takes contributions in turn: each must have a sequence of at least 1, got 0",
                run=self.name,
                field="sequence",
                expected="at least 1",
                given=0,
            )

    def _receipt(self, receipt: Receipt, member: round_pb2.Member) -> shard_pb2.PushResponse:
        if receipt.status == _DUPLICATE:
            self.repeats.add(member)
        response = shard_pb2.PushResponse(status=receipt.status, id=receipt.id, step=self.arena.step)
        if self._gathering is not None:
            response.in_turn = self._gathering.in_turn
        return response
