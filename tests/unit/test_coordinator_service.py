"""The coordinator over real sockets, with shards that only pretend: they count contributions and hold no parameters."""

from __future__ import annotations

from pathlib import Path

import grpc.aio

from stepd import specs
from stepd.policies import ClipNorm
from stepd.v1 import coordinator_pb2 as pb
from stepd.v1 import round_pb2, run_pb2

from .coordinator_bench import Fleet, digits, play, refused


def test_a_run_goes_from_step_to_step(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        created = await fleet.create(digits(workers=2, clip=1.0))
        assert created.run.status == pb.RUN_STATUS_LOADING
        assert created.run.bytes == 200
        assert [shard.target for shard in created.layout.shards] == [shard.target for shard in fleet.shards]
        assert sum(piece.count for shard in created.layout.shards for piece in shard.slices) == 200_000
        await fleet.join("a")
        waiting = await fleet.state()
        assert waiting.status == pb.RUN_STATUS_WAITING
        assert waiting.problem == "waits for 1 more worker, has 1: nobody has joined with rank 1"
        await fleet.join("b")
        fleet.allow(5)
        state = await fleet.until(lambda state: state.step == 5)
        assert state.status == pb.RUN_STATUS_TRAINING
        assert state.last_decision.grad_norm == 5.0
        assert state.last_decision.clip_scale == 1.0 / (5.0 + 1e-6)
        assert [member.worker for member in state.last_decision.members] == ["a", "b"]
        assert list(state.rates) == [0.1]
        await fleet.until(lambda _: all(len(shard.decisions) == 5 for shard in fleet.shards))
        assert fleet.shards[0].decisions == fleet.shards[1].decisions

    play(tmp_path, scenario)


def test_the_next_gathering_is_asked_for_before_the_decision_is_carried_out(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        (shard,) = fleet.shards
        shard.finish_errors = [grpc.StatusCode.UNAVAILABLE] * 3
        await fleet.create(digits())
        await fleet.join()
        fleet.allow(2)
        await fleet.until(lambda state: state.step == 2 and len(shard.decisions) == 2)
        assert [request.id.round for request in shard.gathers[:2]] == [0, 1]
        assert [decision.step for decision in shard.decisions] == [1, 2]

    play(tmp_path, scenario, shards=1)


def test_creation_is_repeatable_and_names_are_unique(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        first = await fleet.create(digits(), "r1")
        again = await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="r1", spec=digits()))
        assert again.layout == first.layout
        async with refused("ALREADY_EXISTS", "'digits'"):
            await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="r2", spec=digits()))
        await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="r2", spec=digits(name="other")))
        listed = await fleet.stub.ListRuns(pb.ListRunsRequest())
        assert [run.spec.name for run in listed.runs] == ["digits", "other"]
        assert [parameter.name for parameter in listed.runs[0].spec.parameters] == [""]
        assert listed.runs[1].status == pb.RUN_STATUS_LOADING

    play(tmp_path, scenario)


def test_a_creation_that_fails_on_one_shard_is_undone_on_all(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.shards[1].refuse = True
        async with refused("UNAVAILABLE", "no memory today"):
            await fleet.create(digits())
        async with refused("RUN_NOT_FOUND"):
            await fleet.state()
        assert not fleet.shards[0].held
        fleet.shards[1].refuse = False
        await fleet.create(digits())

    play(tmp_path, scenario)


def test_bad_requests_are_refused_by_name(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        dotted = digits()
        dotted.name = "../x"
        async with refused("INVALID_ARGUMENT", "../x"):
            await fleet.create(dotted)
        unknown = digits()
        unknown.groups[0].optimizer.rule = "Adamax2"
        async with refused("UNKNOWN_RULE", "Adamax2"):
            await fleet.create(unknown)
        for call, request in (
            (fleet.stub.StartRun, pb.StartRunRequest(run="none")),
            (fleet.stub.DeleteRun, pb.DeleteRunRequest(run="none")),
            (fleet.stub.UpdateRun, pb.UpdateRunRequest(run="none")),
            (fleet.stub.JoinRun, pb.JoinRunRequest(run="none")),
            (fleet.stub.RenewLease, pb.RenewLeaseRequest(run="none")),
            (fleet.stub.LeaveRun, pb.LeaveRunRequest(run="none")),
        ):
            async with refused("RUN_NOT_FOUND", "'none'"):
                await call(request)
        await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="r", spec=digits()))
        async with refused("RUN_NOT_STARTED"):
            await fleet.join()
        async with refused("INVALID_ARGUMENT", "from 0 to 1"):
            await fleet.stub.RegisterShard(pb.RegisterShardRequest(index=2, target="h:1", instance="i"))

    play(tmp_path, scenario)


def test_members_join_renew_leave_and_are_lost(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(workers=2))
        a = (await fleet.join("a", request_id="j")).member
        assert (await fleet.join("a", request_id="j")).member == a
        b = (await fleet.join("b", lease=2)).member
        async with refused("RUN_FULL", "a, b"):
            await fleet.join("c")
        renew = pb.RenewLeaseRequest(run="digits", member=a, metrics={"loss": 0.5})
        assert (await fleet.stub.RenewLease(renew)).round == round_pb2.RoundId(round=0, attempt=0)
        fleet.now += 2
        fleet.service.tick()
        state = await fleet.state()
        assert [(seat.member, dict(seat.metrics)) for seat in state.workers] == [(a, {"loss": 0.5})]
        async with refused("NOT_A_MEMBER", "'b'"):
            await fleet.stub.RenewLease(pb.RenewLeaseRequest(run="digits", member=b))
        assert (await fleet.stub.RenewLease(renew)).round == round_pb2.RoundId(round=0, attempt=1)
        for _ in range(2):
            await fleet.stub.LeaveRun(pb.LeaveRunRequest(run="digits", member=a))
        assert not (await fleet.state()).workers

    play(tmp_path, scenario)


def test_a_latecomer_is_told_its_first_round(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(workers=None))
        assert (await fleet.join("a")).run.round.round == 0
        assert (await fleet.join("b")).run.round == round_pb2.RoundId(round=0, attempt=1)
        fleet.shards[0].allowed += 1
        await fleet.until(lambda _: "arrived a" in repr(fleet.service._runs.get("digits")._rounds))
        assert (await fleet.join("c")).run.round == round_pb2.RoundId(round=1, attempt=0)

    play(tmp_path, scenario)


def test_changes_take_effect_with_the_next_decision(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.join()
        update = pb.UpdateRunRequest(run="digits", rate=pb.RateChange(lr=0.25), clip=specs.clip_to_proto(ClipNorm(2.5)))
        assert list((await fleet.stub.UpdateRun(update)).run.rates) == [0.25]
        fleet.allow()
        decision = (await fleet.until(lambda state: state.step == 1)).last_decision
        assert decision.groups[0].lr == 0.25
        assert decision.clip_scale == 2.5 / (5.0 + 1e-6)
        async with refused("INVALID_ARGUMENT", "max_norm"):
            await fleet.stub.UpdateRun(pb.UpdateRunRequest(run="digits", clip=run_pb2.ClipSpec(max_norm=0.0)))

    play(tmp_path, scenario)


def test_whoever_watches_sees_every_decision_with_the_means_of_reports(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(workers=2))
        members = [(await fleet.join(name)).member for name in "ab"]
        watch = fleet.stub.WatchRun(pb.WatchRunRequest(run="digits"))
        await watch.initial_metadata()
        for member, loss in zip(members, (1.0, 2.0), strict=True):
            renew = pb.RenewLeaseRequest(run="digits", member=member, metrics={"loss": loss})
            await fleet.stub.RenewLease(renew)
        fleet.allow(2)
        first, second = await watch.read(), await watch.read()
        assert (first.decision.step, dict(first.metrics)) == (1, {"loss": 1.5})
        assert (second.decision.step, dict(second.metrics)) == (2, {})
        assert second.decided_at.seconds > 0
        watch.cancel()

    play(tmp_path, scenario)
