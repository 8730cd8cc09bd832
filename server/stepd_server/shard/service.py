"""The shard's two services: thin handlers over its runs."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np

from stepd import at_once, encodings, wire
from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from stepd.limits import SHARED_BYTES_TAKEN
from stepd.rules.base import Array
from stepd.v1 import coordinator_pb2, shard_control_pb2, shard_control_pb2_grpc, shard_pb2
from stepd_server.kernels.updates import wanted
from stepd_server.metrics.catalogue import Sample
from stepd_server.shard import metrics
from stepd_server.shard.arena import Arena, read_prepared
from stepd_server.shard.extending import Extension, no_extension, restore
from stepd_server.shard.gathering import key_of
from stepd_server.shard.plan import Piece
from stepd_server.shard.run import ShardRun, have_kernels
from stepd_server.shard.sharing import parts, share

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Header = TypeVar("Header", shard_pb2.PushHeader, shard_pb2.LoadParametersHeader, shard_pb2.StageStateHeader)


class ShardService(shard_control_pb2_grpc.ShardControlServicer):
    """All runs of one shard. A restarted shard finds them in its folder."""

    def __init__(self, data_dir: Path, index: int) -> None:
        self._index = index
        self._folder = data_dir / f"shard-{index}" / "runs"
        self._runs: dict[str, ShardRun] = {}
        # Calls that have no end of their own.
        self._endless: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._traffic = metrics.Traffic()
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in sorted(self._folder.iterdir()):
            self._reopen(folder)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register both services."""
        shard_control_pb2_grpc.add_ShardControlServicer_to_server(self, server)
        # Bulk messages are taken as bytes and read by stepd.wire.
        handlers: dict[str, Any] = {
            "LoadParameters": grpc.stream_unary_rpc_method_handler(
                self.load_parameters, response_serializer=shard_pb2.LoadParametersResponse.SerializeToString
            ),
            "StageState": grpc.stream_unary_rpc_method_handler(
                self.stage_state, response_serializer=shard_pb2.StageStateResponse.SerializeToString
            ),
            "Push": grpc.stream_unary_rpc_method_handler(
                self.push, response_serializer=shard_pb2.PushResponse.SerializeToString
            ),
            "Pull": grpc.unary_stream_rpc_method_handler(
                self.pull, request_deserializer=shard_pb2.PullRequest.FromString
            ),
            "PushAndPull": grpc.stream_stream_rpc_method_handler(self.push_and_pull),
            "ShareMemory": grpc.stream_stream_rpc_method_handler(
                self.share_memory,
                request_deserializer=shard_pb2.ShareMemoryRequest.FromString,
                response_serializer=shard_pb2.ShareMemoryResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("stepd.v1.Shard", handlers),))

    def held_runs(self) -> list[coordinator_pb2.HeldRun]:
        """What the coordinator is told at registration."""
        return [
            coordinator_pb2.HeldRun(
                run=run.name,
                run_id=run.arena.run_id,
                round=run.arena.round,
                step=run.arena.step,
                torn=bool(run.problem),
                layout_version=run.arena.piece.version,
                repeated_contributions=run.repeats.to_proto(),
            )
            for run in self._runs.values()
            if run.arena.sealed
        ]

    def samples(self) -> Iterator[Sample]:
        """What there is to measure now."""
        return metrics.samples(self._index, self._runs.values(), self._traffic)

    def let_go(self) -> None:
        """End the calls that have no end of their own, for which a server that is to stop would wait."""
        self._stopping = True
        for task in self._endless:
            task.cancel()

    async def stop(self) -> None:
        """End every call; the files stay."""
        for run in self._runs.values():
            await run.close()

    # --- Shard --------------------------------------------------------------------------------------------------

    async def load_parameters(self, stream: AsyncIterator[bytes], _: Context) -> shard_pb2.LoadParametersResponse:
        header = await _first(stream, wire.decode_load, shard_pb2.LoadParametersHeader)
        run = self._run(header.run)
        target = _extension(run, header.extension) if header.extension else run
        await target.load(_chunks(stream, self._traffic))
        return shard_pb2.LoadParametersResponse()

    async def push(self, stream: AsyncIterator[bytes], _: Context) -> shard_pb2.PushResponse:
        header = await _first(stream, wire.decode_push, shard_pb2.PushHeader)
        run = self._run(header.run)
        # Looked up with each chunk: what is held here in vain would keep the memory of a worker that is gone.
        return await run.push(
            header,
            _contributed(stream, run, lambda: run.memories.get(key_of(header.member)), self._traffic),
        )

    async def share_memory(
        self, requests: AsyncIterator[shard_pb2.ShareMemoryRequest], _: Context
    ) -> AsyncGenerator[shard_pb2.ShareMemoryResponse, None]:
        request = await anext(aiter(requests), None)
        if request is None or request.WhichOneof("message") != "offer":
            raise InvalidArgument("sharing memory begins with an offer", reason="BAD_CHUNK", expected="offer")
        async with aclosing(share(request.offer, requests, self._run(request.offer.run))) as answers:
            async for answer in answers:
                yield answer

    async def stage_state(self, stream: AsyncIterator[bytes], _: Context) -> shard_pb2.StageStateResponse:
        header = await _first(stream, wire.decode_stage, shard_pb2.StageStateHeader)
        await self._run(header.run).staging.stage(header, _chunks(stream, self._traffic))
        return shard_pb2.StageStateResponse()

    async def pull(self, request: shard_pb2.PullRequest, _: Context) -> AsyncGenerator[bytes, None]:
        # Closed at once when the caller goes away: a reader holds the next step back.
        run = self._run(request.run)
        async with aclosing(run.pull(request)) as messages:
            async for message in messages:
                self._traffic.sent += len(message)
                if request.shared:
                    self._traffic.shown += _shared_bytes(message, run)
                yield message

    async def push_and_pull(self, requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
        with self._without_end():
            async for raw in requests:
                yield await self._push_and_pull(raw, context)

    async def _push_and_pull(self, raw: bytes, context: Context) -> bytes:
        request = at_once.decode_request(raw)
        run, pulled = self._run(request.pull.run), list[bytes]()
        itemsize = run.arena.piece.dtype.itemsize
        at_once.check_size("push", sum(part.count for part in request.push[0].header.ranges), itemsize)
        _is_little(run, request.pull)
        receipt = await self.push(_stream(request.push), context)
        # Asked again: a group may have come in meanwhile. If it is yet to come, so much is not waited for.
        if _is_little(run, request.pull):
            try:
                pulled = [message async for message in self.pull(request.pull, context)]
            except Aborted as error:
                if error.reason == "ROUND_RESTARTED":
                    raise  # which makes the receipt void
        # Without parameters the caller is to have its receipt, and hears of Pull why.
        return at_once.encode_response(receipt, pulled)

    # --- ShardControl -------------------------------------------------------------------------------------------

    async def PrepareRun(
        self, request: shard_control_pb2.PrepareRunRequest, _: Context
    ) -> shard_control_pb2.PrepareRunResponse:
        name, piece = request.spec.name, Piece.of(request.spec, request.layout, self._index)
        if name not in self._runs and wanted(piece.size):
            # Before the run takes its memory: compiling takes some, and gives it back.
            await asyncio.to_thread(have_kernels, piece)
        if name in self._runs and self._runs[name].arena.run_id != request.run_id:
            await self._drop(name)
        if name not in self._runs:
            arena = Arena(self._folder / name, piece, request)
            self._runs[name] = ShardRun(arena)
        return shard_control_pb2.PrepareRunResponse(bytes=self._runs[name].arena.bytes)

    async def SealRun(self, request: shard_control_pb2.SealRunRequest, _: Context) -> shard_control_pb2.SealRunResponse:
        run = self._run(request.run)
        target = _extension(run, request.extension) if request.extension else run
        target.seal()
        return shard_control_pb2.SealRunResponse()

    async def ExtendRun(
        self, request: shard_control_pb2.ExtendRunRequest, _: Context
    ) -> shard_control_pb2.ExtendRunResponse:
        run = self._run(request.prepared.spec.name)
        return shard_control_pb2.ExtendRunResponse(bytes=stage(run, request, self._index).arena.bytes)

    async def SettleExtension(
        self, request: shard_control_pb2.SettleExtensionRequest, _: Context
    ) -> shard_control_pb2.SettleExtensionResponse:
        run = self._run(request.run)
        if not request.drop:
            await run.settle(request.layout_version, request.round)
        elif run.extension is not None and run.extension.id == request.extension:
            run.extension.drop()
            run.extension = None
        return shard_control_pb2.SettleExtensionResponse()

    async def DropRun(self, request: shard_control_pb2.DropRunRequest, _: Context) -> shard_control_pb2.DropRunResponse:
        await self._drop(request.run)
        return shard_control_pb2.DropRunResponse()

    async def LeadRounds(
        self, requests: AsyncIterator[shard_control_pb2.LeadRoundsRequest], _: Context
    ) -> AsyncGenerator[shard_control_pb2.LeadRoundsResponse, None]:
        with self._without_end():
            async for request in requests:
                if request.HasField("finish"):
                    step = await self._run(request.run).finish(request.finish)
                    yield shard_control_pb2.LeadRoundsResponse(finished=step)
                if request.HasField("gather"):
                    async for message in self._run(request.run).gather(request.gather):
                        yield shard_control_pb2.LeadRoundsResponse(gathered=message)

    async def CloseRound(
        self, request: shard_control_pb2.CloseRoundRequest, _: Context
    ) -> shard_control_pb2.CloseRoundResponse:
        begun = await self._run(request.run).close_round(request.id)
        return shard_control_pb2.CloseRoundResponse(begun=begun)

    async def SelectContributors(
        self, request: shard_control_pb2.SelectContributorsRequest, _: Context
    ) -> shard_control_pb2.SelectContributorsResponse:
        await self._run(request.run).select(request)
        return shard_control_pb2.SelectContributorsResponse()

    async def MeasureRound(
        self, request: shard_control_pb2.MeasureRoundRequest, _: Context
    ) -> AsyncGenerator[shard_control_pb2.MeasureRoundResponse, None]:
        for message in await self._run(request.run).measure(request.decision):
            yield message

    async def HoldState(
        self, request: shard_control_pb2.HoldStateRequest, _: Context
    ) -> shard_control_pb2.HoldStateResponse:
        self._run(request.run).staging.hold(request.state_id)
        return shard_control_pb2.HoldStateResponse()

    async def CommitState(
        self, request: shard_control_pb2.CommitStateRequest, _: Context
    ) -> shard_control_pb2.CommitStateResponse:
        await self._run(request.run).commit_state(request)
        return shard_control_pb2.CommitStateResponse()

    @contextmanager
    def _without_end(self) -> Iterator[None]:
        """A call that lasts until its caller ends it, or this process is stopped."""
        task = asyncio.current_task()
        assert task is not None
        self._endless.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            raise Unavailable("this shard is being stopped") from None
        finally:
            self._endless.discard(task)

    # --- Runs ---------------------------------------------------------------------------------------------------

    def _run(self, name: str) -> ShardRun:
        try:
            return self._runs[name]
        except KeyError:
            raise NotFound(f"no run {name!r} on this shard", reason="RUN_NOT_FOUND", run=name) from None

    async def _drop(self, name: str) -> None:
        run = self._runs.pop(name, None)
        if run is not None:
            await run.close()
            run.arena.remove()

    def _reopen(self, folder: Path) -> None:
        """Take a run up again that an earlier process left; one that never started is of no use to anybody."""
        prepared = read_prepared(folder)
        if prepared is not None:
            arena = Arena(folder, Piece.of(prepared.spec, prepared.layout, self._index), prepared)
            if arena.sealed:
                run = self._runs[arena.piece.spec.name] = ShardRun(arena)
                run.extension = restore(arena, self._index)
                log.info("run %r: taken up again at step %d", arena.piece.spec.name, arena.step)
                return
        shutil.rmtree(folder)


def stage(run: ShardRun, request: shard_control_pb2.ExtendRunRequest, index: int) -> Extension:
    """Take memory for an extension, unless it is there; one that was not settled gives way."""
    arena, staged = run.arena, run.extension
    version = request.prepared.layout.version
    if arena.run_id != request.prepared.run_id or version <= arena.piece.version:
        raise FailedPrecondition(f"run {run.name!r}: not the run, or the version of its layout, that is to be extended")
    if version > arena.piece.version + 1:
        raise Unavailable(f"run {run.name!r}: the group before is not settled yet", reason="GROUP_PENDING")
    if staged is None or staged.request != request:
        if staged is not None:
            staged.drop()
        run.extension = None
        staged = run.extension = Extension(request, arena, index)
    return staged


def _extension(run: ShardRun, id: str) -> Extension:
    if run.extension is None or run.extension.id != id:
        raise no_extension(run.name)
    return run.extension


def _is_little(run: ShardRun, pull: shard_pb2.PullRequest) -> bool:
    """Whether a pull's layout is here, and what it asks for may go in one message; an error if that may not."""
    if not run.has_layout(pull.layout_version):
        return False
    piece = run.arena.piece
    at_once.check_size("pull", sum(part.count for part in pull.ranges) or piece.size, piece.dtype.itemsize)
    return True


async def _stream(messages: Iterable[shard_pb2.PushRequest]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message.SerializeToString()


async def _first(stream: AsyncIterator[bytes], decode: Callable[[bytes], object], kind: type[Header]) -> Header:
    """The header that every stream of chunks begins with."""
    async for raw in stream:
        message = decode(raw)
        if isinstance(message, kind):
            return message
        break
    raise InvalidArgument(f"a stream must begin with a {kind.__name__}", reason="BAD_CHUNK")


async def _contributed(
    stream: AsyncIterator[bytes], run: ShardRun, memory: Callable[[], Array | None], traffic: metrics.Traffic
) -> AsyncIterator[wire.Chunk]:
    """The chunks of a contribution, wherever they lie."""
    async for raw in stream:
        traffic.received += len(raw)
        message = wire.decode_push(raw)
        if isinstance(message, wire.Chunk):
            yield message
        elif isinstance(message, shard_pb2.SharedChunk):
            for chunk in parts(message, memory(), SHARED_BYTES_TAKEN):
                traffic.read += len(chunk.data)
                yield chunk
                await asyncio.sleep(0)  # nothing is waited for here, and others want their turn
        elif isinstance(message, shard_pb2.EncodedChunk | wire.Halves):
            if run.arena.piece.dtype != np.float32:
                raise InvalidArgument(
                    f"a run of {run.arena.piece.dtype} takes no encoded chunks",
                    reason="BAD_CHUNK",
                    expected="float32",
                    given=str(run.arena.piece.dtype),
                )
            yield encodings.decoded(message)
        else:
            raise _second_header()


async def _chunks(stream: AsyncIterator[bytes], traffic: metrics.Traffic) -> AsyncIterator[wire.Chunk]:
    """The chunks that follow it. (One form of message for both streams: see stepd.wire.)"""
    async for raw in stream:
        traffic.received += len(raw)
        message = wire.decode_push(raw)
        if not isinstance(message, wire.Chunk):
            raise _second_header()
        yield message


def _shared_bytes(raw: bytes, run: ShardRun) -> int:
    message = wire.decode_pull(raw)
    return message.count * run.arena.piece.dtype.itemsize if isinstance(message, shard_pb2.SharedChunk) else 0


def _second_header() -> InvalidArgument:
    return InvalidArgument("a stream has one header, at its beginning", reason="BAD_CHUNK")
