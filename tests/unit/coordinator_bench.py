"""A coordinator over real sockets, with scripted shards: the stage for its tests."""

# ruff: noqa: N802  (handlers have the names of the contract)

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from stepd import specs
from stepd.channel import open_channel
from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.errors import ERROR_TABLE, StepdError, Unavailable
from stepd.policies import Clip, ClipNorm, Sync
from stepd.rules import SGD
from stepd.status import from_rpc_error
from stepd.v1 import coordinator_pb2 as pb
from stepd.v1 import coordinator_pb2_grpc, round_pb2, run_pb2, shard_control_pb2_grpc
from stepd.v1 import shard_control_pb2 as control
from stepd_server.coordinator.service import CoordinatorService
from stepd_server.exact import ExactSum
from stepd_server.interceptors import ErrorInterceptor
from tests.patience import PATIENCE_S


def digits(workers: int | None = 1, name: str = "digits", clip: float | None = None) -> run_pb2.RunSpec:
    return specs.run_to_proto(
        RunSpec(
            name=name,
            parameters=(ParameterSpec("w", (200_000,), np.dtype(np.float32)),),
            groups=(GroupSpec(SGD(lr=0.1)),),
            clip=Clip(ClipNorm(clip)) if clip is not None else None,
            sync=Sync(workers=workers),
        )
    )


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (what it waits for happens elsewhere, without telling)
            await asyncio.sleep(0.002)


@dataclass
class Settings:
    shards: int
    data_dir: Path


class FakeShard(shard_control_pb2_grpc.ShardControlServicer):
    """Gathers the rounds that `allow` has let it; what it holds survives the death of its server."""

    def __init__(self, index: int, square: float) -> None:
        self.index = index
        self.square = square
        self.held: dict[str, pb.HeldRun] = {}
        self.gathers: list[control.RoundToGather] = []
        self.decisions: list[round_pb2.Decision] = []
        self.allowed = 0
        self.finish_errors: list[grpc.StatusCode] = []
        self.settle_errors: list[grpc.StatusCode] = []
        self.staged: dict[str, control.ExtendRunRequest] = {}
        self.groups: dict[str, int] = {}
        self.instance = itertools.count()
        self.refuse = False
        self.server: grpc.aio.Server | None = None
        self.target = ""

    async def listen(self) -> None:
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        shard_control_pb2_grpc.add_ShardControlServicer_to_server(self, self.server)
        port = self.server.add_insecure_port(self.target or "127.0.0.1:0")
        self.target = f"127.0.0.1:{port}"
        self.name = f"{self.index}-{next(self.instance)}"
        await self.server.start()

    async def die(self) -> None:
        assert self.server
        await self.server.stop(None)

    async def PrepareRun(self, request: control.PrepareRunRequest, _: Any) -> control.PrepareRunResponse:
        if self.refuse:
            raise Unavailable("no memory today")
        self.held[request.spec.name] = pb.HeldRun(run=request.spec.name, run_id=request.run_id)
        self.groups[request.spec.name] = len(request.spec.groups)
        return control.PrepareRunResponse(bytes=100)

    async def SealRun(self, request: control.SealRunRequest, _: Any) -> control.SealRunResponse:
        return control.SealRunResponse()

    async def ExtendRun(self, request: control.ExtendRunRequest, _: Any) -> control.ExtendRunResponse:
        if self.refuse:
            raise Unavailable("no memory today")
        self.staged[request.prepared.spec.name] = request
        return control.ExtendRunResponse(bytes=200)

    async def SettleExtension(
        self, request: control.SettleExtensionRequest, context: Any
    ) -> control.SettleExtensionResponse:
        if self.settle_errors and not request.drop:
            await context.abort(self.settle_errors.pop(0), "not now")
        staged = self.staged.pop(request.run, None)
        if staged is not None and not request.drop:
            self.held[request.run].layout_version = staged.prepared.layout.version
            self.groups[request.run] = len(staged.prepared.spec.groups)
        return control.SettleExtensionResponse()

    async def HoldState(self, request: control.HoldStateRequest, _: Any) -> control.HoldStateResponse:
        return control.HoldStateResponse()

    async def CommitState(self, request: control.CommitStateRequest, _: Any) -> control.CommitStateResponse:
        return control.CommitStateResponse()

    async def DropRun(self, request: control.DropRunRequest, _: Any) -> control.DropRunResponse:
        self.held.pop(request.run, None)
        return control.DropRunResponse()

    async def LeadRounds(
        self, requests: AsyncIterator[control.LeadRoundsRequest], context: Any
    ) -> AsyncGenerator[control.LeadRoundsResponse, None]:
        async for request in requests:
            if request.HasField("finish"):
                yield control.LeadRoundsResponse(finished=await self._finish(request.run, request.finish, context))
            if request.HasField("gather"):
                async for message in self._gather(request.run, request.gather):
                    yield control.LeadRoundsResponse(gathered=message)

    async def _gather(self, run: str, request: control.RoundToGather) -> AsyncGenerator[control.RoundProgress, None]:
        self.gathers.append(request)
        held, groups = self.held[run], self.groups[run] if not request.layout_version else 2
        await eventually(lambda: held.round >= request.id.round)
        while self.allowed <= request.id.round:  # noqa: ASYNC110 (until the test lets it, or gives it up)
            await asyncio.sleep(0.002)
        for member in request.members:
            yield control.RoundProgress(arrived=member)
        total = ExactSum()
        total.add(self.square)
        part = round_pb2.NormPart(powers=total.to_proto())
        yield control.RoundProgress(
            sums=round_pb2.GatheredSums(
                run_norms=[part] + [round_pb2.NormPart(powers=ExactSum().to_proto())] * (groups - 1),
                group_norms=[round_pb2.NormPart()] * groups,
            )
        )

    async def _finish(self, run: str, decision: round_pb2.Decision, context: Any) -> int:
        if self.finish_errors:
            await context.abort(self.finish_errors.pop(0), "not now")
        held = self.held[run]
        if held.round == decision.id.round:
            self.decisions.append(decision)
            held.round, held.step = held.round + 1, decision.step
        return held.step


class Fleet:
    """A coordinator with its shards, and a stub that raises our errors."""

    def __init__(self, data_dir: Path, shards: int = 2) -> None:
        self.settings = Settings(shards, data_dir)
        self.shards = [FakeShard(index, square) for index, square in enumerate((9.0, 16.0, 0.0)[:shards])]
        self.now = 1000.0
        self.server: grpc.aio.Server | None = None
        self.channel: grpc.aio.Channel | None = None

    async def start_coordinator(self) -> None:
        self.service = CoordinatorService(self.settings, open_channel, steady=lambda: self.now)
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        self.service.add_to(self.server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.service.start()
        await self.server.start()
        self.channel = open_channel(f"127.0.0.1:{port}")
        self.stub: Any = coordinator_pb2_grpc.CoordinatorStub(self.channel)

    async def stop_coordinator(self) -> None:
        assert self.server
        assert self.channel
        await self.channel.close()
        await self.server.stop(None)
        await self.service.stop()

    async def register(self, *shards: FakeShard) -> None:
        for shard in shards or self.shards:
            request = pb.RegisterShardRequest(
                index=shard.index, target=shard.target, instance=shard.name, pid=1, runs=shard.held.values()
            )
            await self.stub.RegisterShard(request)

    async def create(self, spec: run_pb2.RunSpec, request_id: str = "c") -> pb.CreateRunResponse:
        response = await self.stub.CreateRun(pb.CreateRunRequest(request_id=request_id, spec=spec))
        await self.stub.StartRun(pb.StartRunRequest(run=spec.name))
        created: pb.CreateRunResponse = response
        return created

    async def join(
        self, name: str = "a", run: str = "digits", lease: int = 10, request_id: str = ""
    ) -> pb.JoinRunResponse:
        response: pb.JoinRunResponse = await self.stub.JoinRun(
            pb.JoinRunRequest(request_id=request_id, run=run, name=name, lease=Duration(seconds=lease))
        )
        return response

    async def state(self, run: str = "digits") -> pb.RunState:
        response: pb.GetRunResponse = await self.stub.GetRun(pb.GetRunRequest(run=run))
        return response.run

    def allow(self, rounds: int = 1) -> None:
        """So many rounds more, in whichever attempt."""
        for shard in self.shards:
            shard.allowed += rounds

    async def until(self, condition: Callable[[pb.RunState], bool], run: str = "digits") -> pb.RunState:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if condition(state := await self.state(run)):
                    return state
                await asyncio.sleep(0.005)


Scenario = Callable[[Fleet], Awaitable[None]]


@contextlib.asynccontextmanager
async def running(fleet: Fleet) -> AsyncGenerator[Fleet, None]:
    for shard in fleet.shards:
        await shard.listen()
    await fleet.start_coordinator()
    try:
        await fleet.register()
        yield fleet
    finally:
        await fleet.stop_coordinator()
        for shard in fleet.shards:
            await shard.die()


def play(data_dir: Path, scenario: Scenario, shards: int = 2) -> None:
    async def whole() -> None:
        async with running(Fleet(data_dir, shards)) as fleet:
            await scenario(fleet)

    asyncio.run(whole())


@contextlib.asynccontextmanager
async def refused(reason: str, match: str = "") -> AsyncGenerator[None, None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    error: StepdError = from_rpc_error(caught.value)
    assert error.reason == reason, error
    assert type(error) is ERROR_TABLE[reason]
    assert match in str(error)
