"""One run on a shard: who waits for what. All on one event loop, the update as well."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from threading import Thread
from typing import Final

from stepd import wire
from stepd.casts import DTYPES
from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, Unavailable
from stepd.limits import WAIT_S
from stepd.v1 import round_pb2, shard_control_pb2
from stepd_server.kernels.arriving import loops
from stepd_server.kernels.ready import compile_for
from stepd_server.kernels.updates import wanted
from stepd_server.shard.applying import Step, without_norms
from stepd_server.shard.arena import Arena
from stepd_server.shard.extending import Extension
from stepd_server.shard.finishing import Finishing, Sweep, gathered_for, resume
from stepd_server.shard.gathering import Gathering, restarted
from stepd_server.shard.holding import Telling
from stepd_server.shard.loading import lacking, load
from stepd_server.shard.measuring import Measuring
from stepd_server.shard.plan import Piece
from stepd_server.shard.pushing import Pushing
from stepd_server.shard.scratch import Scratch
from stepd_server.shard.sums import clip_limit
from stepd_server.shard.threads import sweep

log = logging.getLogger(__name__)

# A step that breaks off, as when there is no memory, is gone on with after these; then the run is lost here until the
# process starts again.
_PAUSES_S: Final = (0.1, 1.0)


def have_kernels(piece: Piece) -> None:
    """Compile what the first steps of a run take, if that is worth it and not done yet."""
    limits = [clip_limit(piece.spec.clip, group.clip) for group in piece.spec.groups]
    # Nothing of a small group is ever large enough for a kernel.
    large = [
        (group.rule, limit)
        for group, limit in zip(piece.groups, limits, strict=True)
        if wanted(group.stop - group.start)
    ]
    halves = any(encoding in DTYPES for encoding in (piece.spec.gradient_encoding, piece.spec.parameter_encoding))
    compile_for(large, piece.dtype, piece.size, halves=halves)


class ShardRun(Pushing):
    """A run's piece with its round."""

    def __init__(self, arena: Arena) -> None:
        super().__init__(arena)
        # A group that is being added: the run with it, until it counts.
        self.extension: Extension | None = None
        self._loaded = 0
        self._scratch = Scratch(arena.piece)
        self._prepare_kernels()
        self._take_up()

    def _prepare_kernels(self) -> None:
        """Have them be there when the first contribution comes; until they are, NumPy does the same."""
        if wanted(self.arena.piece.size):
            Thread(target=have_kernels, args=(self.arena.piece,), name="compile").start()

    def _take_up(self) -> None:
        """Go on where an earlier process stood: a step that was under way is finished before anybody is answered."""
        try:
            resume(self.arena, self._scratch)
        except Exception as error:
            log.exception("run %r: the step in which the shard died cannot be finished", self.name)
            self.problem = f"the shard died in the middle of step {self.arena.step + 1} and cannot finish it: {error}"
        else:
            decision = self.arena.remembering.read()
            self._decision = decision and without_norms(decision)
            self._counted.learn(self._decision)

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

    # --- Rounds -------------------------------------------------------------------------------------------------

    async def gather(
        self, request: shard_control_pb2.RoundToGather
    ) -> AsyncGenerator[shard_control_pb2.RoundProgress, None]:
        """Open an attempt, or look on if it is open; tell what arrives, and at last the sums."""
        id = (request.id.round, request.id.attempt)
        await self._until_ready(*id)
        if self.arena.round > id[0] or (self._gathering is not None and self._gathering.id > id):
            raise FailedPrecondition(f"run {self.name!r}: round {id[0]} attempt {id[1]} is over")
        if self._gathering is None and (known := self.arena.gathered.read()) and known.id >= id:
            # By an earlier process. It may be decided already: the sum is kept until another attempt is asked for.
            raise Unavailable(f"run {self.name!r}: the shard was started anew after it gathered round {id[0]}")
        self._extend_to(request.layout_version)
        if self._gathering is None or self._gathering.id < id:
            arena = self.arena
            arena.gathered.clear()
            compiled = loops(arena.piece.dtype, arena.piece.size)
            self._expect(request.members)
            earlier = self._had.to_proto(id[0])
            self._gathering = Gathering(arena.piece, arena.accumulator, arena.updates, request, compiled, earlier)
            self._changed.notify()
        gathering = self._gathering
        telling = Telling(gathering, self._holding)
        while True:
            for message in telling.news():
                yield message
            if gathering.complete:
                while gathering.sum_some():
                    await asyncio.sleep(0)
                    self._check_current(gathering)
                sums = gathering.sums()
                if not gathering.in_turn:
                    self._counted.expect(id[0], gathering.sequences(for_any_round=True))
                if not sums.nonfinite:
                    self.arena.gathered.write(gathering.gathered)
                yield shard_control_pb2.RoundProgress(sums=sums)
                return
            await self._changed.until(
                lambda: self._check_alive() and (self._gathering is not gathering or telling.has_news)
            )
            self._check_current(gathering)

    async def _until_ready(self, round_number: int, attempt: int) -> None:
        """Wait until the rounds before are finished, and nothing writes to the accumulator for an attempt before."""

        async def finished() -> None:
            if not await self._changed.until(
                lambda: self._check_alive() and self._finishing is None and self.arena.round >= round_number, WAIT_S
            ):
                raise Unavailable(
                    f"run {self.name!r}: round {self.arena.round} is not finished, asked for {round_number}"
                )

        await finished()
        while self._adding is not None and (self._gathering is None or self._gathering.id < (round_number, attempt)):
            # Threads are done in some milliseconds, and meanwhile nobody begins anything new.
            self._opening += 1
            try:
                await self._changed.until(lambda: self._adding is None)
            finally:
                self._opening -= 1
                self._changed.notify()
            await finished()

    async def close_round(self, id: round_pb2.RoundId) -> list[round_pb2.Member]:
        """Begin no more contributions to an attempt; give whose have begun. Nobody's if it is over."""
        gathering = await self._attempt(id)
        return gathering.close() if gathering else []

    async def select(self, request: shard_control_pb2.SelectContributorsRequest) -> None:
        """Take these contributions into an attempt, if it is not over, and no others."""
        if gathering := await self._attempt(request.id):
            gathering.take(request.selected, request.refused)
            self._changed.notify()

    async def _attempt(self, id: round_pb2.RoundId) -> Gathering | None:
        """The attempt, once it has begun here; None if it is over."""
        wanted = (id.round, id.attempt)
        ready = await self._changed.until(
            lambda: (
                self._check_alive()
                and (self.arena.round > id.round or (self._gathering is not None and self._gathering.id >= wanted))
            ),
            WAIT_S,
        )
        if not ready:
            raise Unavailable(f"run {self.name!r}: round {id.round} attempt {id.attempt} has not begun here")
        gathering = self._gathering
        return gathering if gathering and gathering.id == wanted and self._finishing is None else None

    async def measure(self, draft: round_pb2.Decision) -> list[shard_control_pb2.MeasureRoundResponse]:
        """Find the norms of tensors that a decision lacks."""
        self._check_alive()
        gathering = self._gathering
        if gathering and gathering.id > (draft.id.round, draft.id.attempt):
            raise restarted(self.name, *gathering.id)
        if gathering is None:
            raise Unavailable(f"run {self.name!r}: nothing is gathered since the shard was started")
        if draft.outcome != round_pb2.OUTCOME_APPLIED:
            outcome = round_pb2.Outcome.Name(draft.outcome)
            raise InvalidArgument(f"run {self.name!r}: norms are found for what is applied, got {outcome}")
        self._check_decision(draft)
        assert gathering.spans is not None
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

    def _time(self, decision: round_pb2.Decision) -> None:
        if decision.outcome == round_pb2.OUTCOME_APPLIED:
            self.phases.applied()
            if not self._readers:
                self.phases.sent()

    def _check_decision(self, decision: round_pb2.Decision) -> None:
        """Raise unless it is of the present round, and of what is gathered."""
        if decision.id.round != self.arena.round:
            raise FailedPrecondition(
                f"run {self.name!r}: told to finish round {decision.id.round}, but here it is round {self.arena.round}"
            )
        gathered_for(self.arena, decision)

    async def _finish(self, decision: round_pb2.Decision) -> int:
        self.phases.decided()
        try:
            for pause in (*_PAUSES_S, None):
                try:
                    await self._carry_out(decision)
                    self._time(decision)
                    break
                except Exception as error:
                    log.exception("run %r: carrying out round %d broke off", self.name, decision.id.round)
                    if not self.arena.unfinished:
                        raise  # nothing has changed
                    if pause is None:
                        self.problem = f"step {decision.step} broke off and cannot be finished: {error}"
                        raise self._lost() from error
                    await asyncio.sleep(pause)
            return self.arena.step
        finally:
            self._finishing = None
            self._applied_to = None
            self._changed.notify()

    async def _carry_out(self, decision: round_pb2.Decision) -> None:
        """Carry a decision out from where it stands."""
        gathered, gathering = gathered_for(self.arena, decision), self._gathering
        known = gathering.spans if gathering and gathered and gathering.id == gathered.id else None
        finishing = Finishing(self.arena, decision, gathered, self._scratch, known)
        if not self.arena.unfinished:
            if gathered is not None:
                await self._send_readers_away()
            finishing.begin()
        self._decision = without_norms(decision)
        current = gathering is not None and gathering.id == (decision.id.round, decision.id.attempt)
        self._counted.learn(self._decision, gathering.sequences() if gathering and current else None)
        if gathered is not None:
            self._applied_to = self._applied_to or 0
            self._changed.notify()
        # In turns with the streams and not in a thread: that would ask for the interpreter lock some fifteen times a
        # block, and wait for the streams' use of it each time. A tensor that a rule sees whole can take seconds, nearly
        # all without that lock: there a thread costs little, and streams and the heartbeat go on. So do kernels.
        for turn in finishing.turns():
            if isinstance(turn, Sweep):
                await sweep(finishing, turn, self._is_applied_to)
                continue
            if turn.long:
                await asyncio.to_thread(finishing.carry_out, turn)
            else:
                finishing.carry_out(turn)
            self._is_applied_to(turn.final)
            await asyncio.sleep(0)
        finishing.end()
        self._gathering = None

    def _is_applied_to(self, element: int) -> None:
        self._applied_to = element
        self._changed.notify()

    # --- Groups that are added ----------------------------------------------------------------------------------

    async def settle(self, version: int, from_round: int) -> None:
        """Have the run be its extension of that version, when all rounds before `from_round` are finished."""
        ready = await self._changed.until(
            lambda: (
                self._check_alive()
                and self._finishing is None
                and self._adding is None
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
        self._scratch = Scratch(self.arena.piece)
        self._prepare_kernels()
        self._gathering = None
        self._changed.notify()
        log.info("run %r: extended, version %d of the layout", self.name, version)

    # --- State of the optimizer ---------------------------------------------------------------------------------

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
        for task in (self._finishing, self._adding):
            if task is not None:
                await asyncio.wait([task])
        self.closed = True
        self.staging.close()
        self._changed.notify()
