"""What the coordinator does when shards, creators or itself are lost; over real sockets, with scripted shards."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import grpc.aio
import pytest

from stepd.limits import LOADING_TIMEOUT_S, SHARD_TIMEOUT_S
from stepd.v1 import coordinator_pb2 as pb
from stepd.v1 import round_pb2
from stepd_server.coordinator.slots import Slots

from .coordinator_bench import Fleet, digits, eventually, play, refused


def test_without_all_shards_there_are_no_runs(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.now += SHARD_TIMEOUT_S
        fleet.service.tick()
        await fleet.register(fleet.shards[0])
        seen = await fleet.stub.GetFleet(pb.GetFleetRequest())
        assert [shard.ready for shard in seen.shards] == [True, False]
        async with refused("FLEET_INCOMPLETE", "shards 1 of 2"):
            await fleet.create(digits())

    play(tmp_path, scenario)


def test_a_shard_that_is_replaced_is_told_again(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.join()
        fleet.shards[1].finish_errors = [grpc.StatusCode.UNAVAILABLE] * 1000
        fleet.allow(1)
        await fleet.until(lambda state: state.step == 1)
        await fleet.shards[1].die()
        fleet.now += SHARD_TIMEOUT_S
        await fleet.register(fleet.shards[0])
        fleet.service.tick()
        state = await fleet.state()
        assert (state.status, state.problem) == (pb.RUN_STATUS_RECOVERING, "shard 1 is away")
        fleet.shards[1].finish_errors.clear()
        await fleet.shards[1].listen()
        await fleet.register(fleet.shards[1])
        fleet.allow(1)
        await eventually(lambda: all(len(shard.decisions) == 2 for shard in fleet.shards))
        assert fleet.shards[0].decisions[:2] == fleet.shards[1].decisions[:2]
        assert fleet.shards[1].decisions[1].id.attempt == 1

    play(tmp_path, scenario)


def test_an_old_process_of_a_shard_is_fenced_off(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        old = fleet.shards[1].name
        fleet.shards[1].name = "new"
        await fleet.register(fleet.shards[1])
        fleet.shards[1].name = old
        async with refused("FAILED_PRECONDITION", "another process"):
            await fleet.register(fleet.shards[1])

    play(tmp_path, scenario)


@pytest.mark.parametrize("how", ["gone", "another run", "refuses"])
def test_a_shard_without_its_part_loses_the_run(tmp_path: Path, how: str) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        shard = fleet.shards[1]
        if how == "refuses":
            shard.finish_errors = [grpc.StatusCode.FAILED_PRECONDITION]
            await fleet.join()
            fleet.allow()
        else:
            shard.name = "new"
            if how == "gone":
                shard.held.clear()
            else:
                shard.held["digits"].run_id = "?"
            await fleet.register(shard)
        state = await fleet.until(lambda state: state.status == pb.RUN_STATUS_LOST)
        assert state.problem.startswith("shard 1 ")
        async with refused("RUN_LOST", "shard 1"):
            await fleet.join("b")
        await fleet.stub.DeleteRun(pb.DeleteRunRequest(run="digits"))

    play(tmp_path, scenario)


def test_a_coordinator_that_starts_again_goes_on_where_it_was(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="l", spec=digits(name="loading")))
        member = (await fleet.join(request_id="j")).member
        fleet.allow(3)
        await fleet.until(lambda state: state.step == 3)
        await fleet.stub.UpdateRun(pb.UpdateRunRequest(run="digits", rate=pb.RateChange(lr=0.5)))
        fleet.shards[1].finish_errors = [grpc.StatusCode.UNAVAILABLE] * 1000
        fleet.allow()
        await fleet.until(lambda state: state.step == 4)
        await fleet.stop_coordinator()
        fleet.shards[1].finish_errors.clear()
        await fleet.start_coordinator()
        state = await fleet.state()
        assert (state.status, state.step, list(state.rates)) == (pb.RUN_STATUS_RECOVERING, 4, [0.5])
        async with refused("RUN_NOT_FOUND"):
            await fleet.state("loading")
        await fleet.register()
        await fleet.until(lambda state: state.status == pb.RUN_STATUS_TRAINING)
        renewed = await fleet.stub.RenewLease(pb.RenewLeaseRequest(run="digits", member=member))
        assert renewed.round == round_pb2.RoundId(round=4, attempt=1)
        assert (await fleet.join(request_id="j")).member == member
        fleet.allow()
        await fleet.until(lambda state: state.step == 5)
        await fleet.until(lambda _: all(len(shard.decisions) >= 5 for shard in fleet.shards))
        assert fleet.shards[0].decisions[:5] == fleet.shards[1].decisions[:5]
        assert fleet.shards[0].decisions[4].groups[0].lr == 0.5
        assert "loading" not in fleet.shards[0].held

    play(tmp_path, scenario)


def test_a_deleted_run_is_gone_everywhere_even_from_a_shard_that_was_away(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        watch = fleet.stub.WatchRun(pb.WatchRunRequest(run="digits"))
        await watch.initial_metadata()
        fleet.now += SHARD_TIMEOUT_S
        await fleet.register(fleet.shards[0])
        fleet.service.tick()
        await fleet.stub.DeleteRun(pb.DeleteRunRequest(run="digits"))
        async with refused("RUN_NOT_FOUND", "was deleted"):
            await watch.read()
        assert not fleet.shards[0].held
        assert fleet.shards[1].held
        await fleet.stop_coordinator()
        await fleet.start_coordinator()
        await fleet.register()
        await eventually(lambda: not fleet.shards[1].held)
        await fleet.create(digits())

    play(tmp_path, scenario)


def test_a_creation_that_comes_again_does_not_bring_a_deleted_run_back(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(), "first")
        await fleet.stub.DeleteRun(pb.DeleteRunRequest(run="digits"))
        with pytest.raises(grpc.aio.AioRpcError, match="was created by this request, and deleted since"):
            await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="first", spec=digits()))
        await fleet.create(digits(), "second")

    play(tmp_path, scenario)


def test_a_run_that_nobody_loads_is_dropped(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="r", spec=digits()))
        fleet.now += LOADING_TIMEOUT_S
        await fleet.register()
        fleet.service.tick()
        await eventually(lambda: not any(shard.held for shard in fleet.shards))
        async with refused("RUN_NOT_FOUND"):
            await fleet.state()

    play(tmp_path, scenario)


def test_a_coordinator_that_stood_still_takes_nobody_for_lost(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(workers=2))
        await fleet.join(lease=10)
        fleet.now += 60
        fleet.service.make_up_for(60)
        fleet.service.tick()
        state = await fleet.state()
        assert [worker.member.worker for worker in state.workers] == ["a"]
        assert state.status == pb.RUN_STATUS_WAITING, "shards are here"
        fleet.now += 10
        fleet.service.tick()
        assert not (await fleet.state()).workers

    play(tmp_path, scenario)


def test_a_coordinator_notices_that_it_stood_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        noticed: list[float] = []
        monkeypatch.setattr(fleet.service, "make_up_for", noticed.append)
        time.sleep(0.8)  # noqa: ASYNC251 (that is the fault)
        await eventually(lambda: bool(noticed))
        assert noticed[0] >= 0.5

    play(tmp_path, scenario)


def test_what_cannot_be_recorded_is_not_told_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(workers=None))
        member = (await fleet.join()).member
        fleet.allow(1)
        await fleet.until(lambda state: state.step == 1)
        with monkeypatch.context() as disk:

            def write(*_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            disk.setattr(Slots, "write", write)
            fleet.allow(1)
            state = await fleet.until(lambda state: state.status == pb.RUN_STATUS_RECOVERING)
            assert state.problem == "the coordinator cannot record its decisions: No space left on device"
            assert (state.step, state.last_decision.step, state.round.round) == (1, 1, 1)
            renew = pb.RenewLeaseRequest(run="digits", member=member)
            rate = pb.UpdateRunRequest(run="digits", rate=pb.RateChange(lr=0.5))
            for call in (fleet.stub.RenewLease(renew), fleet.join("b"), fleet.stub.UpdateRun(rate)):
                async with refused("RUN_RECOVERING", "No space left"):
                    await call
            fleet.service.tick()
            assert len(fleet.shards[0].decisions) == 1
            assert (await fleet.state()).step == 1
        state = await fleet.until(lambda state: state.step == 2)
        assert state.status == pb.RUN_STATUS_TRAINING
        assert (await fleet.stub.RenewLease(renew)).round.round == 2
        await fleet.join("b")
        fleet.allow(1)
        state = await fleet.until(lambda state: state.step == 3)
        assert [worker.member.worker for worker in state.workers] == ["a", "b"]

    play(tmp_path, scenario)
