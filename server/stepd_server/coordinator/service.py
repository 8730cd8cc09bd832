"""The Coordinator service: thin handlers. Each checks, delegates and answers; errors are raised as stepd.errors."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Protocol

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from stepd.limits import LEASE_S_MIN, SHARD_INTERVAL_S
from stepd.settings import refuse
from stepd.v1 import coordinator_pb2 as pb
from stepd.v1 import coordinator_pb2_grpc
from stepd_server.coordinator import convert, metrics
from stepd_server.coordinator.fleet import Dial, Fleet
from stepd_server.coordinator.picture import Clocks
from stepd_server.coordinator.runs import Runs
from stepd_server.coordinator.store import Store
from stepd_server.metrics.catalogue import Sample

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

# How often leases and shards are looked at: a fraction of the shortest lease.
_TICK_S: Final = 0.1
_REQUEST_ID_CHARS_MAX: Final = 128


class Settings(Protocol):
    """What the service needs of a coordinator's settings."""

    @property
    def shards(self) -> int: ...
    @property
    def data_dir(self) -> Path | None: ...


class CoordinatorService(coordinator_pb2_grpc.CoordinatorServicer):
    """Everything that the coordinator answers. `add_to` a server, `start`, and at the end `stop`."""

    def __init__(
        self,
        settings: Settings,
        dial: Dial,
        *,
        steady: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Args:
        settings: `data_dir` must be given; files are kept under `data_dir/coordinator`.
        dial: opens a channel to a shard.
        steady: seconds that only grow.
        wall: seconds since the epoch.
        """
        assert settings.data_dir is not None
        self._data_dir = settings.data_dir
        self._clocks = Clocks(steady, wall)
        self._fleet: Final = Fleet(settings.shards, dial, steady)
        self._running: Runs | None = None
        self._ticker: asyncio.Task[None] | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self, server)

    def samples(self) -> Iterator[Sample]:
        """What there is to measure now."""
        return metrics.samples(self._running.all() if self._running else ())

    async def start(self) -> None:
        """Take up what an earlier coordinator left."""
        self._running = Runs(self._fleet, Store(self._data_dir), self._clocks)
        self._ticker = asyncio.create_task(self._tick_for_ever(), name="coordinator clock")

    async def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        if self._running is not None:
            await self._running.close()
        await self._fleet.close()

    @property
    def _runs(self) -> Runs:
        assert self._running is not None, "start() comes before the first call"
        return self._running

    async def _tick_for_ever(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            slept = clock()
            await asyncio.sleep(_TICK_S)
            late = clock() - slept - _TICK_S
            try:
                if late >= LEASE_S_MIN / 2:
                    self.make_up_for(late)
                self.tick()
            except Exception:
                # Without a clock no lease would ever run out.
                logger.exception("the coordinator's clock stumbled")

    def make_up_for(self, seconds: float) -> None:
        """This process stood still for so long: stopped, or without a processor. Whoever lives has not been heard."""
        logger.warning("the coordinator stood still for %.1f s: leases end that much later", seconds)
        self._fleet.make_up_for(seconds)
        self._runs.make_up_for(seconds)

    def tick(self) -> None:
        """Let time take effect: on shards first, then on leases."""
        for shard in self._fleet.expire():
            self._runs.shard_away(shard)
        self._runs.tick()

    # --- Runs -----------------------------------------------------------------------------------------------------

    async def CreateRun(self, request: pb.CreateRunRequest, _: Context) -> pb.CreateRunResponse:
        _check_request_id(request.request_id)
        run = await self._runs.create(request.request_id, request.spec)
        return pb.CreateRunResponse(run=run.state(), layout=run.layout)

    async def StartRun(self, request: pb.StartRunRequest, _: Context) -> pb.StartRunResponse:
        return pb.StartRunResponse(run=(await self._runs.start(request.run, request.run_id)).state())

    async def GetRun(self, request: pb.GetRunRequest, _: Context) -> pb.GetRunResponse:
        run = self._runs.get(request.run)
        return pb.GetRunResponse(run=run.state(), layout=run.layout)

    async def ListRuns(self, _request: pb.ListRunsRequest, _: Context) -> pb.ListRunsResponse:
        states = [run.state() for run in self._runs.all()]
        for state in states:
            for parameter in state.spec.parameters:
                parameter.ClearField("name")
        return pb.ListRunsResponse(runs=states)

    async def UpdateRun(self, request: pb.UpdateRunRequest, _: Context) -> pb.UpdateRunResponse:
        _check_request_id(request.request_id)
        run = self._runs.get(request.run)
        run.update(request)
        return pb.UpdateRunResponse(run=run.state())

    async def AddGroup(self, request: pb.AddGroupRequest, _: Context) -> pb.AddGroupResponse:
        if not request.request_id:
            refuse("request", "request_id", "", "at least 1 character: it names the group until it is committed")
        _check_request_id(request.request_id)
        return await self._runs.add_group(request)

    async def CommitGroup(self, request: pb.CommitGroupRequest, _: Context) -> pb.CommitGroupResponse:
        return pb.CommitGroupResponse(run=(await self._runs.commit_group(request)).state())

    async def LoadState(self, request: pb.LoadStateRequest, _: Context) -> pb.LoadStateResponse:
        return pb.LoadStateResponse(run=(await self._runs.load_state(request)).state())

    async def DeleteRun(self, request: pb.DeleteRunRequest, _: Context) -> pb.DeleteRunResponse:
        await self._runs.delete(request.run, request.run_id)
        return pb.DeleteRunResponse()

    async def WatchRun(
        self, request: pb.WatchRunRequest, context: Context
    ) -> AsyncGenerator[pb.WatchRunResponse, None]:
        with self._runs.get(request.run).watching() as events:
            # Whoever watches knows by this that nothing decided from now on is missed.
            await context.send_initial_metadata(())
            async for event in events:
                yield event

    # --- Members --------------------------------------------------------------------------------------------------

    async def JoinRun(self, request: pb.JoinRunRequest, _: Context) -> pb.JoinRunResponse:
        _check_request_id(request.request_id)
        run = self._runs.get(request.run)
        rank = request.rank if request.HasField("rank") else None
        again = convert.member_from_proto(request.again) if request.HasField("again") else None
        seat = run.join(request.request_id, request.name, rank, _seconds(request.lease), again)
        return pb.JoinRunResponse(
            member=convert.member_to_proto(seat.member), run=run.state(of=seat.member), layout=run.layout
        )

    async def RenewLease(self, request: pb.RenewLeaseRequest, _: Context) -> pb.RenewLeaseResponse:
        run = self._runs.get(request.run)
        member = convert.member_from_proto(request.member)
        at = run.renew(member, dict(request.metrics), request.observed, request.observed_before)
        return pb.RenewLeaseResponse(round=convert.id_to_proto(at), counted=run.counted(member))

    async def LeaveRun(self, request: pb.LeaveRunRequest, _: Context) -> pb.LeaveRunResponse:
        contributed = convert.id_from_proto(request.contributed) if request.HasField("contributed") else None
        self._runs.get(request.run).leave(convert.member_from_proto(request.member), contributed)
        return pb.LeaveRunResponse()

    # --- Fleet ----------------------------------------------------------------------------------------------------

    async def GetFleet(self, _request: pb.GetFleetRequest, _: Context) -> pb.GetFleetResponse:
        shards = [
            pb.ShardState(index=shard.index, target=shard.target, ready=shard.ready, pid=shard.pid)
            for shard in self._fleet.shards
        ]
        return pb.GetFleetResponse(shards=shards, runs=len(self._runs), version=_version())

    async def RegisterShard(self, request: pb.RegisterShardRequest, _: Context) -> pb.RegisterShardResponse:
        if self._fleet.register(request):
            self._runs.shard_back(request.index, request.runs)
        self._runs.count_repeated(request.index, request.runs)
        interval = Duration()
        interval.FromNanoseconds(int(SHARD_INTERVAL_S * 1e9))
        return pb.RegisterShardResponse(interval=interval)


def _check_request_id(request_id: str) -> None:
    if len(request_id) > _REQUEST_ID_CHARS_MAX:
        refuse("request", "request_id", request_id, f"at most {_REQUEST_ID_CHARS_MAX} characters")


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9


@functools.cache
def _version() -> str:
    try:
        return metadata.version("stepd")
    except metadata.PackageNotFoundError:
        return "unknown"  # not installed: run from a source tree
