"""One run on a shard: who waits for what. All on one event loop, the update as well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial

import numpy as np

from stepd import wire
from stepd.errors import FailedPrecondition, NotFound, Unavailable
from stepd.limits import BLOCK_ELEMENTS, CHUNK_BYTES, READER_GRACE_S, WAIT_S
from stepd.rules.base import Array
from stepd.v1 import round_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.applying import apply_step
from stepd_server.shard.arena import Arena
from stepd_server.shard.averaging import Averaging, averaged, check_averages
from stepd_server.shard.extending import Extension
from stepd_server.shard.gathering import (
    Contribution,
    Gathering,
    as_array,
    key_of,
    layout_changed,
    restarted,
    status_outside,
)
from stepd_server.shard.loading import cut_short, lacking, load
from stepd_server.shard.reading import Reader, cut_into, pending, version_passed
from stepd_server.shard.signal import Signal
from stepd_server.shard.staging import Staging

log = logging.getLogger(__name__)


class ShardRun:
    """A run's piece with its round."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.staging = Staging(arena)
        self.name = arena.piece.spec.name
        self.closed = False
        # A group that is being added: the run with it, until it counts.
        self.extension: Extension | None = None
        self._changed = Signal()
        self._gathering: Gathering | None = None
        # The latest decision that has taken effect or is being applied.
        self._decision: round_pb2.Decision | None = None
        self._finishing: asyncio.Task[int] | None = None
        # Up to which element parameters have the version that is being applied; None between steps.
        self._applied_to: int | None = None
        self._readers: set[Reader] = set()
        self._loaded = 0

    # --- Initial parameters -------------------------------------------------------------------------------------

    async def load(self, chunks: AsyncIterator[wire.Chunk]) -> None:
        """Take the initial parameters."""
        if self.arena.sealed:
            raise FailedPrecondition(f"run {self.name!r} has started: its parameters are not loaded any more")
        self._loaded = 0
        await load(self.arena, 0, chunks, self._check_alive)
        self._loaded = self.arena.piece.size

    def seal(self) -> None:
        """Open the run."""
        if self.arena.sealed:
            return
        if self._loaded != self.arena.piece.size:
            raise lacking(self.name, self._loaded, self.arena.piece.size)
        self.arena.seal()

    # --- Contributions ------------------------------------------------------------------------------------------

    async def push(self, header: shard_pb2.PushHeader, chunks: AsyncIterator[wire.Chunk]) -> shard_pb2.PushResponse:
        """Take one contribution."""
        id = (header.id.round, header.id.attempt)
        await self._wait(lambda: self._admits(header), header.id.round)
        gathering = self._gathering
        if gathering is None or gathering.id != id or key_of(header.member) not in gathering.contributions:
            return self._receipt(header, status_outside(header, self._decision, gathering))
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
        if not self._has_layout(header.layout_version):
            return False
        gathering = self._gathering
        if gathering is None or self._finishing is not None or header.id.round > gathering.id[0]:
            return False
        if header.id.attempt < gathering.id[1]:
            raise restarted(self.name, *gathering.id)
        return header.id.attempt == gathering.id[1]

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
        self._extend_to(request.layout_version)
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
                self._decision = decision
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
        await self._changed.until(lambda: not self._readers, READER_GRACE_S)
        for reader in self._readers:
            reader.cut = True
        self._applied_to = 0
        self._decision = decision
        self.arena.begin()
        self._changed.notify()
        # In turns with the streams and not in a thread of its own: a thread would ask for the interpreter lock some
        # fifteen times a block, and wait for the streams' use of it each time (measured: three times as long).
        averaging = Averaging(self.arena, decision.step)
        for final in apply_step(self.arena, gathering.spans, gathering.shaping, decision, averaging):
            self._applied_to = final
            self._changed.notify()
            await asyncio.sleep(0)
        self.arena.updates[gathering.touched] += 1
        self._applied_to = self.arena.piece.size
        self._changed.notify()
        for _ in averaging.add_untouched(gathering.touched):
            await asyncio.sleep(0)

    # --- Groups that are added ----------------------------------------------------------------------------------

    async def settle(self, version: int, from_round: int) -> None:
        """Have the run be its extension of that version, when all rounds before `from_round` are finished."""
        ready = await self._changed.until(
            lambda: (
                self._check_alive()
                and self._finishing is None
                and not self.staging.busy
                and self.arena.round >= from_round
            ),
            WAIT_S,
        )
        if not ready:
            raise Unavailable(f"run {self.name!r}: round {self.arena.round} is not finished")
        self._extend_to(version)

    def _extend_to(self, version: int) -> None:
        extension = self.extension
        if version <= self.arena.piece.version:
            return
        if extension is None or not extension.sealed or extension.version != version:
            raise FailedPrecondition(f"run {self.name!r}: version {version} of the layout was not prepared here")
        self.arena, self.extension = extension.settle(), None
        self.staging = self.staging.extended(self.arena)
        self._gathering = None
        self._changed.notify()
        log.info("run %r: extended, version %d of the layout", self.name, version)

    def _has_layout(self, version: int) -> bool:
        """Whether a caller's layout is the present one; one that is to come may be waited for."""
        present = self.arena.piece.version
        if version < present:
            raise layout_changed(self.name, present)
        return version == present

    # --- Parameters ---------------------------------------------------------------------------------------------

    async def pull(self, request: shard_pb2.PullRequest) -> AsyncGenerator[bytes, None]:
        """Stream one version of the parameters, or of their averages."""
        if request.averaged:
            check_averages(self.arena.piece)
        await self._wait(lambda: self._has_version(request), request.round if request.HasField("round") else None)
        # From here to the first yield nothing else runs: the version cannot change before the reader is known.
        reader = Reader(state=request.state)
        self._readers.add(reader)
        try:
            step = self._present_step
            header = shard_pb2.PullHeader(step=step, round=self._round, decision=self._decision)
            ranges = [(r.start, r.start + r.count) for r in request.ranges] or [(0, self.arena.piece.size)]
            if request.ranges:
                self.arena.piece.covered(ranges)
            if request.state:
                self.staging.describe(header)
            yield wire.encode_header(shard_pb2.PullResponse, header)
            for start, part in self.staging.chunks() if request.state else ():
                if reader.cut:
                    raise version_passed(self.name, step, self._present_step)
                yield wire.encode_chunk(start, part.nbytes, [part])
            if request.state:
                return
            # Averages that a rule has to be asked for are made a block at a time.
            size = CHUNK_BYTES // self.arena.piece.dtype.itemsize
            for start, stop in cut_into(ranges, min(size, BLOCK_ELEMENTS) if request.averaged else size):
                # What a step leaves as it is is averaged last.
                await self._until_final(None if request.averaged else stop)
                if reader.cut:
                    raise version_passed(self.name, step, self._present_step)
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
        if not self._has_layout(request.layout_version):
            return False
        if request.HasField("round") and request.round >= self._round:
            gathering = self._gathering
            if gathering is not None and request.HasField("attempt") and self._finishing is None:
                round_number, attempt = gathering.id
                if round_number == request.round and attempt > request.attempt:
                    raise restarted(self.name, round_number, attempt)
            return False
        if request.HasField("step"):
            step = self._present_step
            if step > request.step:
                raise version_passed(self.name, request.step, step)
            return step == request.step and self._rests_for(request)
        return self._rests_for(request)

    def _rests_for(self, request: shard_pb2.PullRequest) -> bool:
        """Whether nothing changes what is asked for in a way that cannot be followed: the state, counts and all."""
        return not request.state or (self._applied_to is None and not self.staging.busy)

    async def _until_final(self, stop: int | None) -> None:
        """Wait until parameters are final up to an element; None: until no step is under way."""
        if not self._is_final(stop):
            await self._changed.until(partial(self._is_final, stop))

    def _is_final(self, stop: int | None) -> bool:
        self._check_alive()
        return self._applied_to is None or (stop is not None and self._applied_to >= stop)

    # --- What everything above asks -----------------------------------------------------------------------------

    @property
    def _round(self) -> int:
        """Rounds decided, as far as this shard has begun to carry them out."""
        return self.arena.round + (self._applied_to is not None)

    @property
    def _present_step(self) -> int:
        """Steps applied, the one under way included."""
        return self._decision.step if self._applied_to is not None and self._decision else self.arena.step

    async def _wait(self, condition: Callable[[], bool], round_number: int | None) -> None:
        """Wait for a round, but not so long that a dead connection goes unnoticed: the caller asks again."""
        if await self._changed.until(condition, WAIT_S):
            return
        now = self.arena.round if round_number is None else round_number
        raise pending(self.name, now, self._gathering.awaited if self._gathering else None)

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

    async def commit_state(self, request: shard_control_pb2.CommitStateRequest) -> None:
        """Put the held state into use before a round."""
        await self.staging.commit(
            request,
            self._changed,
            lambda: self._check_alive() and self._finishing is None and self.arena.round >= request.round,
            self._readers,
        )

    async def close(self) -> None:
        """End every call on the run; return when nothing changes its memory any more."""
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
        self.closed = True
        self.staging.close()
        self._changed.notify()
