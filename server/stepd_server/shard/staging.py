"""States of the optimizer beside the one in use: taken in, held, and put into use as a whole.

Two at most, each as large as the run's buffers: one that comes in or waits for a while, and one that the coordinator
holds, because it is about to decide, or has decided, that it is to be used. In the run's folder:

staged.data         the one that comes in, flat; gone when the process starts again
held.data, held.pb  the one that is held: buffers, and counts with scalars
commit.pb           written when the held state begins to replace the one in use: what is begun is finished, also by the
                    next process, for the held one stays until then
loaded              the id of the latest that was put into use
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from stepd import wire
from stepd.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from stepd.limits import CHUNK_BYTES, READER_GRACE_S, STAGED_S, STATE_ID_CHARS_MAX, UPDATES_MAX, WAIT_S
from stepd.rules.base import Array
from stepd.settings import refuse
from stepd.v1 import shard_control_pb2, shard_pb2
from stepd_server.shard.arena import Arena
from stepd_server.shard.files import write_whole
from stepd_server.shard.gathering import as_array
from stepd_server.shard.loading import cut_short
from stepd_server.shard.signal import Signal

# Elements that are copied between two looks at what else there is to do.
_ELEMENTS_AT_ONCE: Final = 1 << 20


class StateReader(Protocol):
    """A pull under way: whether it reads the state, and whether it must not read on."""

    state: bool
    cut: bool


@dataclass(frozen=True)
class _State:
    """Attributes:
    header: counts and scalars.
    data: the state space.
    """

    header: shard_pb2.StageStateHeader
    data: Array

    @property
    def id(self) -> str:
        return self.header.state_id


class Staging:
    """Attributes:
    state_id: of the latest state that was put into use; empty if there was none.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._folder = arena.folder
        self._staged: _State | None = None
        self._held: _State | None = None
        self._turn = object()
        self._expiry: asyncio.TimerHandle | None = None
        self._committing: asyncio.Task[None] | None = None
        self.state_id = self._read("loaded").decode()
        self._remove("staged.data")
        self._take_up()

    def _take_up(self) -> None:
        """What an earlier process held, and what it had begun."""
        if header := self._read("held.pb"):
            data = self._arena.beside("held.data", self.size)
            self._held = _State(shard_pb2.StageStateHeader.FromString(header), data)
        if begun := self._read("commit.pb"):
            for _ in self._carry_out(shard_control_pb2.CommitStateRequest.FromString(begun)):
                pass

    @property
    def size(self) -> int:
        """Elements of the state space."""
        return sum(array.size for array in _flat(self._arena))

    @property
    def busy(self) -> bool:
        """Whether the state in use is being replaced."""
        return self._committing is not None

    def close(self) -> None:
        """The run is over."""
        if self._expiry is not None:
            self._expiry.cancel()

    def extended(self, arena: Arena) -> Staging:
        """That of the run with a further group. What was taken in or held for the run as it was fits no more."""
        assert not self.busy
        self._drop_staged()
        self._remove("held.pb", "held.data")
        return Staging(arena)

    # --- Reading ------------------------------------------------------------------------------------------------

    def describe(self, header: shard_pb2.PullHeader) -> None:
        """Say in the header of a pull what is in use."""
        arena = self._arena
        for index, (group, arrays) in enumerate(zip(arena.piece.groups, arena.buffers, strict=True)):
            for buffer, array in zip(group.rule.buffers(), arrays, strict=True):
                header.buffers.add(group=index, name=buffer.name, count=array.size)
        header.updates.extend(arena.updates.tolist())
        for index in range(len(arena.piece.slices)):
            header.scalars.extend(arena.scalars(index, self._scalars_of(index)))
        header.state_id = self.state_id

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """The state in use, in chunks: the place of each in the state space, and its bytes."""
        count, at = CHUNK_BYTES // self._arena.piece.dtype.itemsize, 0
        for array in _flat(self._arena):
            for start in range(0, array.size, count):
                part = array[start : start + count]
                yield at + start, part.view(np.uint8).data
            at += array.size

    # --- Taking in ----------------------------------------------------------------------------------------------

    async def stage(self, header: shard_pb2.StageStateHeader, chunks: AsyncIterator[wire.Chunk]) -> None:
        """Take a state in, in place of the one that was taken in before."""
        self._check(header)
        self._drop_staged()
        turn = self._turn = object()
        data = self._arena.beside("staged.data", self.size)
        try:
            await self._receive(header.state_id, data, chunks, lambda: self._turn is turn)
        except BaseException:
            if self._turn is turn:
                self._drop_staged()
            raise
        self._staged = _State(header, data)
        self._expiry = asyncio.get_running_loop().call_later(STAGED_S, self._drop_staged)

    async def _receive(
        self, state_id: str, data: Array, chunks: AsyncIterator[wire.Chunk], wanted: Callable[[], bool]
    ) -> None:
        at = 0
        async for chunk in chunks:
            count = wire.check_chunk(chunk, at, data.size, data.dtype.itemsize)
            if not wanted():
                raise FailedPrecondition("another state has taken the place of this one", state_id=state_id)
            values = as_array(chunk.data, data.dtype)
            if not np.isfinite(values).all():
                raise InvalidArgument(f"the buffers of a state must be finite, those from {at} on are not")
            data[at : at + count] = values
            at += count
        if at != data.size:
            raise cut_short(at, data.size)

    def _check(self, header: shard_pb2.StageStateHeader) -> None:
        piece = self._arena.piece
        if not 1 <= len(header.state_id) <= STATE_ID_CHARS_MAX:
            refuse("state", "state_id", header.state_id, f"1 to {STATE_ID_CHARS_MAX} characters")
        scalars = sum(self._scalars_of(index) for index in range(len(piece.slices)))
        for field, given, expected in (
            ("updates", len(header.updates), len(piece.slices)),
            ("scalars", len(header.scalars), scalars),
        ):
            if given != expected:
                refuse("state", field, given, f"{expected} numbers, as the run has them on this shard")
        if any(count > UPDATES_MAX for count in header.updates):
            refuse("state", "updates", max(header.updates), f"at most {UPDATES_MAX}")
        if not all(map(math.isfinite, header.scalars)):
            refuse("state", "scalars", "a NaN or an infinity", "finite")

    def _drop_staged(self) -> None:
        self._turn = object()
        self._staged = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._remove("staged.data")

    def hold(self, state_id: str) -> None:
        """Keep what was taken in until it is put into use, or until something else is held."""
        if (self._held is not None and self._held.id == state_id) or self.state_id == state_id:
            return
        staged = self._staged
        if staged is None or staged.id != state_id:
            raise NotFound(f"no state {state_id!r} is staged on this shard", state_id=state_id)
        self._held = None
        self._remove("held.pb", "held.data")
        if staged.data.size:
            (self._folder / "staged.data").rename(self._folder / "held.data")
        try:
            write_whole(self._folder / "held.pb", staged.header.SerializeToString())
            self._held = staged
        finally:
            if self._held is None:
                self._remove("held.data")
            self._drop_staged()

    # --- Putting into use ---------------------------------------------------------------------------------------

    async def commit(
        self,
        request: shard_control_pb2.CommitStateRequest,
        changed: Signal,
        at_rest: Callable[[], bool],
        readers: Iterable[StateReader],
    ) -> None:
        """Put the held state into use, if that is not done already.

        Args:
            request: which, and with what hyperparameters.
            changed: wakes whoever waits for something of the run.
            at_rest: whether the run stands between rounds; may raise.
            readers: of the run; those of the state are waited for, and then sent away.
        """
        if self.state_id == request.state_id:
            return
        if not await changed.until(at_rest, WAIT_S):
            raise Unavailable(f"run {request.run!r}: the round before {request.round} is not finished")
        if self.state_id == request.state_id:
            return
        if self._committing is None:
            if self._held is None or self._held.id != request.state_id or self._arena.round != request.round:
                raise FailedPrecondition(
                    f"run {request.run!r} at round {self._arena.round}: told to use the state {request.state_id!r} "
                    f"from round {request.round} on, but "
                    + (f"{self._held.id!r} is held here" if self._held else "none is held here")
                )
            self._committing = asyncio.create_task(self._commit(request, changed, readers))
        await asyncio.shield(self._committing)

    async def _commit(
        self, request: shard_control_pb2.CommitStateRequest, changed: Signal, readers: Iterable[StateReader]
    ) -> None:
        try:
            await changed.until(lambda: not any(reader.state for reader in readers), READER_GRACE_S)
            for reader in readers:
                reader.cut = reader.cut or reader.state
            write_whole(self._folder / "commit.pb", request.SerializeToString())
            for _ in self._carry_out(request):
                await asyncio.sleep(0)
        finally:
            self._committing = None
            changed.notify()

    def _carry_out(self, request: shard_control_pb2.CommitStateRequest) -> Iterator[None]:
        """Copy the held state over the one in use. May be begun anew at any point."""
        if self.state_id != request.state_id and self._held is not None:
            arena, held, at = self._arena, self._held, 0
            for array in _flat(arena):
                for start in range(0, array.size, _ELEMENTS_AT_ONCE):
                    part = array[start : start + _ELEMENTS_AT_ONCE]
                    part[...] = held.data[at : at + part.size]
                    at += part.size
                    yield
            arena.updates[:] = np.array(held.header.updates, arena.updates.dtype)
            scalars = iter(held.header.scalars)
            for index in range(len(arena.piece.slices)):
                arena.set_scalars(index, tuple(next(scalars) for _ in range(self._scalars_of(index))))
            self._begin_anew()
            arena.change_groups(request.groups)
            write_whole(self._folder / "loaded", request.state_id.encode())
            self.state_id = request.state_id
        self._held = None
        self._remove("commit.pb", "held.pb", "held.data")

    def _begin_anew(self) -> None:
        """Buffers that begin as their parameter, of parameters that have never been updated."""
        piece, arena = self._arena.piece, self._arena
        for index in np.flatnonzero(arena.updates == 0).tolist():
            group = piece.group_of(index)
            start, stop, begin = piece.starts[index], piece.starts[index + 1], piece.groups[group].start
            for buffer, array in zip(piece.groups[group].rule.buffers(), arena.buffers[group], strict=True):
                if buffer.initial == "parameter":
                    array[start - begin : stop - begin] = arena.parameters[start:stop]

    # --- Files --------------------------------------------------------------------------------------------------

    def _scalars_of(self, index: int) -> int:
        piece = self._arena.piece
        return len(piece.groups[piece.group_of(index)].rule.scalars())

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _remove(self, *names: str) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / name).unlink()


def _flat(arena: Arena) -> Iterator[Array]:
    """The arrays that the state space is made of, in order."""
    for arrays in arena.buffers:
        yield from arrays
