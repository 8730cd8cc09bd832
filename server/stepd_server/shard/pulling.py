"""Where one run stands on a shard, and who reads it: pulls wait for a version, and are cut before it is overwritten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial

import numpy as np

from stepd import encodings, wire
from stepd.errors import FailedPrecondition, NotFound
from stepd.limits import BLOCK_ELEMENTS, CHUNK_BYTES, MESSAGES_KEPT, SHARED_BYTES_AT_ONCE, WAIT_S
from stepd.rules.base import Array
from stepd.settings import refuse
from stepd.v1 import round_pb2, shard_pb2
from stepd_server.shard.arena import Arena
from stepd_server.shard.averaging import averaged, check_averages
from stepd_server.shard.gathering import Gathering, Key, key_of, layout_changed, not_shared, restarted
from stepd_server.shard.holding import Had, Holding, Repeats
from stepd_server.shard.phases import Phases
from stepd_server.shard.reading import Reader, cut_into, pending, version_passed
from stepd_server.shard.signal import Signal
from stepd_server.shard.staging import Staging


class Pulling:
    """A run's piece as its readers see it. What changes it is in run.py."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.staging = Staging(arena)
        self.name = arena.piece.spec.name
        self.closed = False
        self.phases = Phases(time.monotonic)
        # Why the run cannot go on here; empty if it can.
        self.problem = ""
        self._changed = Signal()
        self._gathering: Gathering | None = None
        self._holding = Holding()
        self._had = Had(unknown_in=arena.round if arena.sealed else -1)
        self._counted = arena.counted
        self.repeats = Repeats()
        # The latest decision that has taken effect or is being applied.
        self._decision: round_pb2.Decision | None = None
        self._finishing: asyncio.Task[int] | None = None
        # Up to which element parameters have the version that is being applied; None between steps.
        self._applied_to: int | None = None
        self._readers: set[Reader] = set()
        # Of the attempt that was opened last.
        self._members: frozenset[Key] = frozenset()
        # By round, encoding and place: messages that one of several readers has had. Gone with the last of them.
        self._messages: dict[tuple[int, str, int, int], bytes] = {}
        # A step waits for them: whoever comes now reads what it leaves.
        self._turning = False
        # Elements that threads are adding; and how many attempts are to be opened when that is done.
        self._adding: asyncio.Future[None] | None = None
        self._opening = 0
        # Of members that share theirs: where their contributions lie.
        self.memories: dict[Key, Array] = {}

    # --- Parameters ---------------------------------------------------------------------------------------------

    async def pull(self, request: shard_pb2.PullRequest) -> AsyncGenerator[bytes, None]:
        """Stream one version of the parameters, or of their averages."""
        self._check_form(request)
        await self._wait(lambda: self._has_version(request), request.round if request.HasField("round") else None)
        # From here to the first yield nothing else runs: the version cannot change before the reader is known.
        member = key_of(request.member) if request.HasField("member") else None
        reader = Reader(member, state=request.state, sent_away=request.sent_away)
        self._readers.add(reader)
        try:
            step = self._present_step
            header = shard_pb2.PullHeader(step=step, round=self._round, decision=self._decision)
            if request.HasField("member"):
                self._counted.describe(request.member, header)
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
            size = self._bytes_at_once(request) // self.arena.piece.dtype.itemsize
            if request.shared and request.in_place:
                size = self.arena.piece.size
            for start, stop in cut_into(ranges, min(size, BLOCK_ELEMENTS) if request.averaged else size):
                # What a step leaves as it is is averaged last.
                await self._until_final(None if request.averaged else stop)
                if reader.cut:
                    raise version_passed(self.name, step, self._present_step)
                yield self._part(request, start, stop)
            if request.shared:
                # It still reads, and ends the call when it has; or else we do, as with any reader that takes too long.
                await self._changed.until(lambda: reader.cut, reader.grace)
        finally:
            self._leave(reader)

    def _check_form(self, request: shard_pb2.PullRequest) -> None:
        """Whether what is asked for can be had in the form that is asked for."""
        if request.averaged:
            check_averages(self.arena.piece)
        if request.encoding:
            thing = f"run {self.name!r}: pull"
            if encodings.of_parameters(request.encoding) is None:
                refuse(thing, "encoding", request.encoding, 'absent for "float32"')
            if request.averaged or request.state or request.shared or self.arena.piece.dtype != np.float32:
                refuse(thing, "encoding", request.encoding, "absent but for parameters of float32 that are sent")
        if request.shared and (request.averaged or request.state or key_of(request.member) not in self.memories):
            raise not_shared("it has not asked, or this shard has been started again")

    def _bytes_at_once(self, request: shard_pb2.PullRequest) -> int:
        """Of parameters, in one message."""
        if request.shared:
            return SHARED_BYTES_AT_ONCE
        encoding = encodings.of_parameters(request.encoding) if request.encoding else None
        return CHUNK_BYTES * (encoding.together if encoding else 1)

    def _part(self, request: shard_pb2.PullRequest, start: int, stop: int) -> bytes:
        """One message of what is asked for: values, or where they lie."""
        if request.shared:
            chunk = shard_pb2.SharedChunk(offset=start, count=stop - start)
            return shard_pb2.PullResponse(shared=chunk).SerializeToString()
        # Workers all want the same at about the same time. Few want averages.
        key = (self._round, request.encoding, start, stop)
        message = None if request.averaged else self._messages.get(key)
        if message is None:
            message = self._encoded(request, start, stop)
            if len(self._readers) > 1 and not request.averaged:
                if len(self._messages) == MESSAGES_KEPT:
                    del self._messages[next(iter(self._messages))]
                self._messages[key] = message
        return message

    def _encoded(self, request: shard_pb2.PullRequest, start: int, stop: int) -> bytes:
        if request.encoding:
            encoding = encodings.of_parameters(request.encoding)
            assert encoding is not None  # `pull` has looked
            return encoding.message(start, self.arena.parameters[start:stop])
        content = averaged(self.arena, start, stop) if request.averaged else self.arena.parameters[start:stop]
        return wire.encode_chunk(start, content.nbytes, [content.view(np.uint8).data])

    def _leave(self, reader: Reader) -> None:
        self._readers.discard(reader)
        if not self._readers:
            self._messages.clear()
            self.phases.sent()
        self._changed.notify()

    def _has_version(self, request: shard_pb2.PullRequest) -> bool:
        """Whether the parameters asked for are here, or on their way through an update."""
        self._check_alive()
        if not self.arena.sealed:
            raise FailedPrecondition(f"run {self.name!r} has not started", reason="RUN_NOT_STARTED")
        if not self.has_layout(request.layout_version):
            return False
        if request.HasField("round") and request.round >= self._round:
            gathering = self._gathering
            if gathering is not None and request.HasField("attempt") and self._finishing is None:
                round_number, attempt = gathering.id
                if round_number == request.round and attempt > request.attempt:
                    raise restarted(self.name, round_number, attempt, in_turn=gathering.in_turn)
            return False
        if request.HasField("step"):
            step = self._present_step
            if step > request.step:
                raise version_passed(self.name, request.step, step)
            return step == request.step and self._rests_for(request)
        # Readers that come one after another must not keep a step from beginning. Who asks for this very version reads
        # it on other shards already.
        return not self._turning and self._rests_for(request)

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

    def _expect(self, members: Iterable[round_pb2.Member]) -> None:
        """An attempt of these is opened: who is no longer among them is lost, and what it reads holds nobody up."""
        keys = frozenset(map(key_of, members))
        for reader in self._readers:
            if reader.member in self._members - keys:
                reader.cut = True
        self._members = keys

    async def _send_readers_away(self) -> None:
        """Wait a while for those who read what is to be overwritten."""
        self._turning = True
        try:
            # Who has been sent away before is slow, and would be again.
            grace = max((reader.grace for reader in self._readers), default=0.0)
            await self._changed.until(lambda: all(reader.cut for reader in self._readers), grace)
        finally:
            self._turning = False
        for reader in self._readers:
            reader.cut = True

    # --- What everything asks -----------------------------------------------------------------------------

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

    async def until_closed(self) -> None:
        """Wait until the run is closed here."""
        await self._changed.until(lambda: self.closed)

    def _check_alive(self) -> bool:
        if self.closed:
            raise NotFound(f"run {self.name!r} was deleted", reason="RUN_NOT_FOUND", run=self.name)
        if self.problem:
            raise self._lost()
        return True

    def _lost(self) -> FailedPrecondition:
        return FailedPrecondition(f"run {self.name!r} is lost: {self.problem}", reason="RUN_LOST", run=self.name)

    def _check_current(self, gathering: Gathering) -> None:
        self._check_alive()
        if self._gathering is not gathering:
            now = self._gathering
            raise restarted(
                self.name, *(now.id if now else (self.arena.round, 0)), in_turn=now.in_turn if now else None
            )

    def has_layout(self, version: int) -> bool:
        """Whether a caller's layout is the present one; one that is to come may be waited for."""
        present = self.arena.piece.version
        if version < present:
            raise layout_changed(self.name, present)
        return version == present
