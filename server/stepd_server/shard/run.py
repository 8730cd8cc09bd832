"""One run on a shard: who waits for what. All on one event loop, the update as well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial

import numpy as np

from stepd import wire
from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from stepd.limits import BLOCK_ELEMENTS, CHUNK_BYTES, READER_GRACE_S, WAIT_S
from stepd.rules.base import Array
from stepd.v1 import round_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.applying import Step, without_norms
from stepd_server.shard.arena import Arena
from stepd_server.shard.averaging import averaged, check_averages
from stepd_server.shard.gathering import Contribution, Gathering, as_array, cut_short, key_of, members_text, restarted
from stepd_server.shard.measuring import Measuring
from stepd_server.shard.plan import chunked
from stepd_server.shard.scratch import Scratch
from stepd_server.shard.signal import Signal

log = logging.getLogger(__name__)


class Reader:
    """A pull under way. `cut`: the version it reads is about to be overwritten, and it must not read on."""

    def __init__(self) -> None:
        self.cut = False


class ShardRun:
    """A run's piece with its round."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.name = arena.piece.spec.name
        self.closed = False
        self._changed = Signal()
        self._gathering: Gathering | None = None
        # The latest decision that has taken effect or is being applied.
        self._decision: round_pb2.Decision | None = None
        self._finishing: asyncio.Task[int] | None = None
        # Up to which element parameters have the version that is being applied; None between steps.
        self._applied_to: int | None = None
        self._readers: set[Reader] = set()
        self._loaded = 0
        self._scratch = Scratch(arena.piece)

    # --- Initial parameters -------------------------------------------------------------------------------------

    async def load(self, chunks: AsyncIterator[wire.Chunk]) -> None:
        """Take the initial parameters."""
        if self.arena.sealed:
            raise FailedPrecondition(f"run {self.name!r} has started: its parameters are not loaded any more")
        piece = self.arena.piece
        self._loaded = at = 0
        async for chunk in chunks:
            count = wire.check_chunk(chunk, at, piece.size, piece.dtype.itemsize)
            data = as_array(chunk.data, piece.dtype)
            finite = np.isfinite(data)
            if not finite.all():
                parameter = piece.parameter_at(at + int(np.argmin(finite)))
                name = piece.spec.parameters[parameter].name
                raise InvalidArgument(
                    f"initial parameter {name!r} must be finite, got {data[np.argmin(finite)]}",
                    reason="NONFINITE_PARAMETER",
                    parameter=name,
                )
            self.arena.parameters[at : at + count] = data
            at += count
        if at != piece.size:
            raise cut_short(at, piece.size)
        self._loaded = at

    def seal(self) -> None:
        """Open the run."""
        if self.arena.sealed:
            return
        if self._loaded != self.arena.piece.size:
            raise FailedPrecondition(
                f"run {self.name!r} lacks initial parameters on this shard: "
                f"{self._loaded} of {self.arena.piece.size} elements are loaded",
                reason="RUN_NOT_STARTED",
            )
        self.arena.seal()

    # --- Contributions ------------------------------------------------------------------------------------------

    async def push(self, header: shard_pb2.PushHeader, chunks: AsyncIterator[wire.Chunk]) -> shard_pb2.PushResponse:
        """Take one contribution."""
        id = (header.id.round, header.id.attempt)
        await self._wait(lambda: self._admits(header), header.id.round)
        gathering = self._gathering
        if gathering is None or gathering.id != id or key_of(header.member) not in gathering.contributions:
            return self._receipt(header, self._status_outside(header))
        contribution = gathering.begin(header)
        if contribution.whole:
            return self._receipt(header, shard_pb2.RECEIPT_STATUS_DUPLICATE)
        assert contribution.track is not None
        size, dtype, at = contribution.track.size, self.arena.piece.dtype, 0
        self._changed.notify()  # a contribution that holds little may have let others go ahead
        async for chunk in chunks:
            at += wire.check_chunk(chunk, at, size, dtype.itemsize)
            data = as_array(chunk.data, dtype)
            await self._add(gathering, contribution, data, at)
        if at != size:
            raise cut_short(at, size)
        self._check_current(gathering)
        if not contribution.whole:
            gathering.finish(contribution)
        self._changed.notify()
        return self._receipt(header, shard_pb2.RECEIPT_STATUS_ACCEPTED)

    async def _add(self, gathering: Gathering, contribution: Contribution, data: Array, stop: int) -> None:
        """Add the part of a chunk (which ends at `stop` of the contribution) that has not been added."""
        if stop > contribution.added and not gathering.turn(contribution, stop - contribution.added):
            # Not reading on holds the sender back; an early contribution takes no memory here.
            await self._wait(
                lambda: (
                    self._gathering is not gathering
                    or stop <= contribution.added
                    or gathering.turn(contribution, stop - contribution.added)
                ),
                gathering.id[0],
            )
        self._check_current(gathering)
        new = stop - contribution.added
        if new > 0:
            gathering.add(contribution, data[-new:])
            if gathering.deterministic:
                self._changed.notify()

    def _admits(self, header: shard_pb2.PushHeader) -> bool:
        """Whether what is to become of a contribution can be said now."""
        self._check_alive()
        if header.id.round < self._round:
            return True
        gathering = self._gathering
        if gathering is None or self._finishing is not None or header.id.round > gathering.id[0]:
            return False
        if header.id.attempt < gathering.id[1]:
            raise restarted(self.name, *gathering.id)
        return header.id.attempt == gathering.id[1]

    def _status_outside(self, header: shard_pb2.PushHeader) -> shard_pb2.ReceiptStatus:
        """What became of a contribution to a round that is over or does not count its sender."""
        key = key_of(header.member)
        decision = self._decision
        if decision is not None and decision.id.round == header.id.round:
            if any(key_of(m) == key for m in decision.quarantined):
                return shard_pb2.RECEIPT_STATUS_QUARANTINED
            if any(key_of(m) == key for m in decision.members):
                return shard_pb2.RECEIPT_STATUS_DUPLICATE
        gathering = self._gathering
        if gathering is not None and gathering.id[0] == header.id.round and key in gathering.quarantined:
            return shard_pb2.RECEIPT_STATUS_QUARANTINED
        return shard_pb2.RECEIPT_STATUS_LATE

    def _receipt(self, header: shard_pb2.PushHeader, status: shard_pb2.ReceiptStatus) -> shard_pb2.PushResponse:
        return shard_pb2.PushResponse(status=status, id=header.id, step=self.arena.step)

    # --- Rounds -------------------------------------------------------------------------------------------------

    async def gather(
        self, request: shard_control_pb2.GatherRoundRequest
    ) -> AsyncGenerator[shard_control_pb2.GatherRoundResponse, None]:
        """Open an attempt, or look on if it is open; tell what arrives, and at last the sums."""
        id = (request.id.round, request.id.attempt)
        ready = await self._changed.until(
            lambda: self._check_alive() and self._finishing is None and self.arena.round >= id[0], WAIT_S
        )
        if not ready:
            raise Unavailable(f"run {self.name!r}: round {self.arena.round} is not finished, asked for {id[0]}")
        if self.arena.round > id[0] or (self._gathering is not None and self._gathering.id > id):
            raise FailedPrecondition(f"run {self.name!r}: round {id[0]} attempt {id[1]} is over")
        if self._gathering is None or self._gathering.id < id:
            arena = self.arena
            self._gathering = Gathering(arena.piece, arena.accumulator, arena.updates, request)
            self._changed.notify()
        gathering, told = self._gathering, set[int]()
        while True:
            for contribution in list(gathering.contributions.values()):
                if contribution.whole and contribution.position not in told:
                    told.add(contribution.position)
                    yield shard_control_pb2.GatherRoundResponse(arrived=contribution.member)
            if gathering.complete:
                yield shard_control_pb2.GatherRoundResponse(sums=gathering.sums())
                return
            await self._changed.until(
                lambda: (
                    self._check_alive()
                    and (
                        self._gathering is not gathering
                        or sum(c.whole for c in gathering.contributions.values()) > len(told)
                    )
                )
            )
            self._check_current(gathering)

    async def measure(self, draft: round_pb2.Decision) -> list[shard_control_pb2.MeasureRoundResponse]:
        """Find the norms of tensors that a decision lacks."""
        self._check_alive()
        gathering = self._gathering
        if gathering and gathering.id > (draft.id.round, draft.id.attempt):
            raise restarted(self.name, *gathering.id)
        self._check_decision(draft)
        assert gathering and gathering.spans is not None  # noqa: PT018
        step = Step(self.arena, gathering.shaping, draft, self._scratch)
        measuring = Measuring(self.arena.piece, step, gathering.spans)
        for _ in measuring.turns():
            await asyncio.sleep(0)
            self._check_current(gathering)
            if self._finishing is not None:
                raise Aborted(f"run {self.name!r}: round {draft.id.round} is decided", reason="ROUND_RESTARTED")
        return list(measuring.messages())

    async def finish(self, decision: round_pb2.Decision) -> int:
        """Carry a decision out; give the number of steps applied then."""
        self._check_alive()
        if decision.id.round < self.arena.round:
            return self.arena.step
        if self._finishing is None:
            self._check_decision(decision)
            self._finishing = asyncio.create_task(self._finish(decision))
        # A caller that goes away must not stop a step half way.
        return await asyncio.shield(self._finishing)

    def _check_decision(self, decision: round_pb2.Decision) -> None:
        id = (decision.id.round, decision.id.attempt)
        gathered = self._gathering is not None and self._gathering.id == id and self._gathering.complete
        applies = decision.outcome == round_pb2.OUTCOME_APPLIED
        if id[0] != self.arena.round or (applies and not gathered):
            raise FailedPrecondition(
                f"run {self.name!r}: told to finish round {id[0]} attempt {id[1]}, but here "
                f"{self._gathering.id if self._gathering else f'nothing of round {self.arena.round}'} is gathered"
            )

    async def _finish(self, decision: round_pb2.Decision) -> int:
        try:
            if decision.outcome == round_pb2.OUTCOME_APPLIED:
                await self._apply(decision)
            else:
                self._decision = without_norms(decision)
            self.arena.finish(decision.step)
            self._gathering = None
            return self.arena.step
        except Exception:
            # A step that broke off has left a torn piece, which every later call is told.
            log.exception("run %r: applying round %d failed", self.name, decision.id.round)
            raise
        finally:
            self._finishing = None
            self._applied_to = None
            self._changed.notify()

    async def _apply(self, decision: round_pb2.Decision) -> None:
        gathering = self._gathering
        assert gathering is not None
        assert gathering.spans is not None
        step = Step(self.arena, gathering.shaping, decision, self._scratch)
        step.check(gathering.spans)
        await self._changed.until(lambda: not self._readers, READER_GRACE_S)
        for reader in self._readers:
            reader.cut = True
        self._applied_to = 0
        self._decision = without_norms(decision)
        self.arena.begin()
        self._changed.notify()
        # In turns with the streams and not in a thread: that would ask for the interpreter lock some fifteen times a
        # block, and wait for the streams' use of it each time. A tensor that a rule sees whole can take seconds, nearly
        # all without that lock: there a thread costs little, and streams and the heartbeat go on.
        for turn in step.turns(gathering.spans):
            if turn.long:
                await asyncio.to_thread(step.update, turn.spans)
            else:
                step.update(turn.spans)
            self._applied_to = turn.spans[-1].stop
            self._changed.notify()
            await asyncio.sleep(0)
        step.finish()
        self.arena.updates[gathering.touched] += 1
        self._applied_to = self.arena.piece.size
        self._changed.notify()
        for _ in step.average_untouched(gathering.touched):
            await asyncio.sleep(0)

    # --- Parameters ---------------------------------------------------------------------------------------------

    async def pull(self, request: shard_pb2.PullRequest) -> AsyncGenerator[bytes, None]:
        """Stream one version of the parameters, or of their averages."""
        if request.averaged:
            check_averages(self.arena.piece)
        await self._wait(lambda: self._has_version(request), request.round if request.HasField("round") else None)
        # From here to the first yield nothing else runs: the version cannot change before the reader is known.
        reader = Reader()
        self._readers.add(reader)
        try:
            decision = self._decision
            step = decision.step if self._applied_to is not None and decision is not None else self.arena.step
            header = shard_pb2.PullHeader(step=step, round=self._round, decision=decision)
            ranges = [(r.start, r.start + r.count) for r in request.ranges] or [(0, self.arena.piece.size)]
            if request.ranges:
                self.arena.piece.covered(ranges)
            yield wire.encode_header(shard_pb2.PullResponse, header)
            # Averages that a rule has to be asked for are made a block at a time.
            size = CHUNK_BYTES // self.arena.piece.dtype.itemsize
            for start, stop in chunked(ranges, min(size, BLOCK_ELEMENTS) if request.averaged else size):
                # What a step leaves as it is is averaged last.
                await self._until_final(None if request.averaged else stop)
                if reader.cut:
                    raise self._version_passed(step)
                content = averaged(self.arena, start, stop) if request.averaged else self.arena.parameters[start:stop]
                yield wire.encode_chunk(start, content.nbytes, [content.view(np.uint8).data])
        finally:
            self._readers.discard(reader)
            self._changed.notify()

    def _has_version(self, request: shard_pb2.PullRequest) -> bool:
        """Whether the parameters asked for are here, or on their way through an update."""
        self._check_alive()
        if not self.arena.sealed:
            raise FailedPrecondition(f"run {self.name!r} has not started", reason="RUN_NOT_STARTED")
        if request.HasField("round") and request.round >= self._round:
            gathering = self._gathering
            if gathering is not None and request.HasField("attempt") and self._finishing is None:
                round_number, attempt = gathering.id
                if round_number == request.round and attempt > request.attempt:
                    raise restarted(self.name, round_number, attempt)
            return False
        if request.HasField("step"):
            step = self._decision.step if self._applied_to is not None and self._decision else self.arena.step
            if step > request.step:
                raise self._version_passed(request.step)
            return step == request.step
        return True

    async def _until_final(self, stop: int | None) -> None:
        """Wait until parameters are final up to an element; None: until no step is under way."""
        if not self._is_final(stop):
            await self._changed.until(partial(self._is_final, stop))

    def _is_final(self, stop: int | None) -> bool:
        self._check_alive()
        return self._applied_to is None or (stop is not None and self._applied_to >= stop)

    def _version_passed(self, asked: int) -> Aborted:
        present = self._decision.step if self._applied_to is not None and self._decision else self.arena.step
        return Aborted(
            f"run {self.name!r}: step {asked} has been overwritten by step {present}",
            reason="VERSION_PASSED",
            step=present,
        )

    # --- What everything above asks -----------------------------------------------------------------------------

    @property
    def _round(self) -> int:
        """Rounds decided, as far as this shard has begun to carry them out."""
        return self.arena.round + (self._applied_to is not None)

    async def _wait(self, condition: Callable[[], bool], round_number: int | None) -> None:
        """Wait for a round, but not so long that a dead connection goes unnoticed: the caller asks again."""
        if await self._changed.until(condition, WAIT_S):
            return
        awaited = members_text(self._gathering.awaited) if self._gathering else "enough workers"
        raise Aborted(
            f"run {self.name!r}: round {self.arena.round if round_number is None else round_number} "
            f"is not decided yet, waiting for {awaited}",
            reason="ROUND_PENDING",
            run=self.name,
            awaited=awaited,
        )

    def _check_alive(self) -> bool:
        if self.closed:
            raise NotFound(f"run {self.name!r} was deleted", reason="RUN_NOT_FOUND", run=self.name)
        if self.arena.torn and self._finishing is None:
            raise FailedPrecondition(
                f"run {self.name!r} is lost: the shard died in the middle of step {self.arena.step + 1}",
                reason="RUN_LOST",
            )
        return True

    def _check_current(self, gathering: Gathering) -> None:
        self._check_alive()
        if self._gathering is not gathering:
            now = self._gathering.id if self._gathering else (self.arena.round, 0)
            raise restarted(self.name, *now)

    async def close(self) -> None:
        """End every call on the run; return when nothing changes its memory any more."""
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
        self.closed = True
        self._changed.notify()
