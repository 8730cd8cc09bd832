"""Groups that are added to a live run: what is laid out, and what happens when something goes wrong on the way."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from stepd import specs
from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.errors import DtypeMismatch, InvalidArgument, OverlappingGroups, ResourceExhausted
from stepd.layout import extend, lay_out, slices_of, to_proto
from stepd.limits import LOADING_TIMEOUT_S, PARAMETERS_MAX
from stepd.policies import Clip, ClipNorm
from stepd.rules import SGD, Muon
from stepd.v1 import coordinator_pb2 as pb
from stepd.v1 import run_pb2
from stepd_server.coordinator.extension import Extension, extension_of
from stepd_server.coordinator.store import RunStore

from .coordinator_bench import Fleet, digits, eventually, play, refused

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
RUN = RunSpec(
    name="run",
    parameters=(ParameterSpec("w", (100,), F32), ParameterSpec("b", (3,), F32, 1)),
    groups=(GroupSpec(SGD(lr=0.1)), GroupSpec(SGD(lr=0.2))),
)


def spread(spec: RunSpec) -> run_pb2.Layout:
    pieces = lay_out([p.size for p in spec.parameters], [4] * len(spec.parameters), 2, block=8)
    return to_proto(pieces, ["a:1", "b:1"], run_pb2.D_TYPE_FLOAT32, 8)


def extended(*parameters: ParameterSpec, group: GroupSpec | None = None, run: RunSpec = RUN) -> Extension:
    request = pb.AddGroupRequest(
        request_id="x",
        group=specs.group_to_proto(group or GroupSpec(SGD(lr=0.3), clip=Clip(ClipNorm(1.0)))),
        parameters=map(specs.parameter_to_proto, parameters),
    )
    return extension_of(request, run, spread(run), spread, 5.0)


def test_a_group_is_laid_out_behind_what_is_there() -> None:
    """By itself, over all shards; ids go on; the group's own number is filled in."""
    extension = extended(
        ParameterSpec("v", (64,), F32, 7), ParameterSpec("none", (0,), F32), ParameterSpec("u", (), F32)
    )
    spec = extension.spec(RUN)
    assert [(p.name, p.group) for p in spec.parameters[2:]] == [("v", 2), ("none", 2), ("u", 2)]
    assert (len(spec.groups), spec.groups[2].clip) == (3, Clip(ClipNorm(1.0)))
    assert extension.layout.version == 1
    for before, after in zip(spread(RUN).shards, extension.layout.shards, strict=True):
        assert slices_of(after)[: len(before.slices)] == slices_of(before)
        assert all(piece.parameter >= 2 for piece in slices_of(after)[len(before.slices) :])
    counts = {2: 0, 4: 0}
    for shard in extension.layout.shards:
        for piece in slices_of(shard):
            if piece.parameter >= 2:
                counts[piece.parameter] += piece.count
    assert counts == {2: 64, 4: 1}
    assert all(any(piece.parameter == 2 for piece in slices_of(shard)) for shard in extension.layout.shards)


def test_a_layout_that_is_extended_is_not_touched() -> None:
    before = spread(RUN)
    after = extend(before, spread(RUN))
    assert before == spread(RUN)
    assert [len(shard.slices) for shard in after.shards] == [2 * len(shard.slices) for shard in before.shards]


def test_what_the_owner_has_changed_meanwhile_stays() -> None:
    extension = extended(ParameterSpec("v", (64,), F32))
    changed = replace(RUN, groups=(GroupSpec(SGD(lr=9.0)), RUN.groups[1]), clip=Clip(ClipNorm(2.0)))
    spec = extension.spec(changed)
    assert [group.optimizer.lr for group in spec.groups] == [9.0, 0.2, 0.3]
    assert spec.clip == Clip(ClipNorm(2.0))


@pytest.mark.parametrize(
    ("parameters", "group", "kind", "message"),
    [
        ([ParameterSpec("b", (1,), F32)], None, OverlappingGroups, "'b' stands twice, in the groups 1 and 2"),
        ([ParameterSpec("v", (1,), F32), ParameterSpec("v", (1,), F32)], None, OverlappingGroups, "the groups 2 and 2"),
        ([ParameterSpec("v", (1,), F64)], None, DtypeMismatch, "'v': run 'run' computes in float32"),
        ([], None, InvalidArgument, "at least one parameter"),
        ([ParameterSpec("v", (1,), F32)], GroupSpec(Muon()), InvalidArgument, "optimizer|'v'"),
        ([ParameterSpec(f"{i}", (), F32) for i in range(PARAMETERS_MAX - 1)], None, ResourceExhausted, "parameters"),
    ],
    ids=["overlap", "twice", "double", "empty", "rule", "many"],
)
def test_a_group_is_held_to_the_rules_of_creating(
    parameters: list[ParameterSpec], group: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        extended(*parameters, group=group)


def test_a_double_run_takes_singles() -> None:
    double = RunSpec(name="run", parameters=(ParameterSpec("w", (2,), F64),), groups=(GroupSpec(SGD(lr=0.1)),))
    assert extended(ParameterSpec("v", (2,), F32), run=double).spec(double).master == F64


def group(name: str = "v", request_id: str = "g", run: str = "digits") -> pb.AddGroupRequest:
    parameter = ParameterSpec(name, (200_000,), F32)
    return pb.AddGroupRequest(
        request_id=request_id,
        run=run,
        group=specs.group_to_proto(GroupSpec(SGD(lr=0.5))),
        parameters=[specs.parameter_to_proto(parameter)],
    )


def commit(request_id: str = "g", *, abandon: bool = False) -> pb.CommitGroupRequest:
    return pb.CommitGroupRequest(run="digits", request_id=request_id, abandon=abandon)


def test_a_group_is_staged_committed_and_gathered(tmp_path: Path) -> None:
    """The run is as it was until the commit; both calls may be repeated."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.join()
        added = await fleet.stub.AddGroup(group())
        assert await fleet.stub.AddGroup(group()) == added
        assert [p.name for p in added.spec.parameters] == ["w", "v"]
        assert [shard.target for shard in added.layout.shards] == [shard.target for shard in fleet.shards]
        assert len((await fleet.state()).rates) == 1
        await fleet.stub.UpdateRun(pb.UpdateRunRequest(run="digits", rate=pb.RateChange(lr=0.25)))
        for _ in range(2):
            committed = (await fleet.stub.CommitGroup(commit())).run
            assert (list(committed.rates), committed.bytes) == ([0.25, 0.5], 400)
        assert (await fleet.stub.AddGroup(group())).layout == added.layout
        found = await fleet.stub.GetRun(pb.GetRunRequest(run="digits"))
        assert (found.layout, found.run.round.attempt) == (added.layout, 1)
        await eventually(lambda: all(shard.held["digits"].layout_version == 1 for shard in fleet.shards))
        fleet.allow()
        decision = (await fleet.until(lambda state: state.step >= 1)).last_decision
        assert [one.lr for one in decision.groups] == [0.25, 0.5]

    play(tmp_path, scenario)


def test_a_failure_on_one_shard_leaves_all_as_they_were(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        fleet.shards[1].refuse = True
        async with refused("UNAVAILABLE", "no memory today"):
            await fleet.stub.AddGroup(group())
        assert not any(shard.staged for shard in fleet.shards)
        fleet.shards[1].refuse = False
        async with refused("NOT_FOUND", "not being added"):
            await fleet.stub.CommitGroup(commit())
        assert len((await fleet.state()).spec.parameters) == 1
        await fleet.stub.AddGroup(group())
        await fleet.stub.CommitGroup(commit())

    play(tmp_path, scenario)


def test_a_group_that_cannot_be_written_down_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is as it was, and takes another group at once."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.stub.AddGroup(group())
        with monkeypatch.context() as patch:
            patch.setattr(RunStore, "write_record", full)
            async with refused("RESOURCE_EXHAUSTED", "cannot write down"):
                await fleet.stub.CommitGroup(commit())
        assert len((await fleet.state()).rates) == 1
        async with refused("NOT_FOUND", "not being added"):
            await fleet.stub.CommitGroup(commit())
        await fleet.stub.AddGroup(group("u", "h"))
        await fleet.stub.CommitGroup(commit("h"))
        assert [p.name for p in (await fleet.state()).spec.parameters] == ["w", "u"]

    play(tmp_path, scenario)


def test_one_group_at_a_time(tmp_path: Path) -> None:
    """Until it is committed, given up, or has not been heard of for too long."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.stub.AddGroup(group())
        async with refused("GROUP_PENDING", "'digits'"):
            await fleet.stub.AddGroup(group("u", "h"))
        for _ in range(2):
            await fleet.stub.CommitGroup(commit(abandon=True))
        assert not any(shard.staged for shard in fleet.shards)
        await fleet.stub.AddGroup(group("u", "h"))
        fleet.now += LOADING_TIMEOUT_S
        await fleet.register()
        await fleet.stub.AddGroup(group("t", "i"))
        async with refused("NOT_FOUND"):
            await fleet.stub.CommitGroup(commit("h"))
        await fleet.stub.CommitGroup(commit("i"))
        assert [p.name for p in (await fleet.state()).spec.parameters] == ["w", "t"]
        async with refused("INVALID_ARGUMENT", "request_id"):
            await fleet.stub.AddGroup(group("s", ""))

    play(tmp_path, scenario)


def test_runs_that_cannot_take_a_group(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        for call, wanted in ((fleet.stub.AddGroup, group()), (fleet.stub.CommitGroup, commit())):
            async with refused("RUN_NOT_FOUND"):
                await call(wanted)
        await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="r", spec=digits()))
        async with refused("RUN_NOT_STARTED"):
            await fleet.stub.AddGroup(group())

    play(tmp_path, scenario)


def test_a_shard_that_missed_the_commit_is_told_by_the_next_coordinator(tmp_path: Path) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits())
        await fleet.stub.AddGroup(group())
        fleet.shards[1].settle_errors = [grpc.StatusCode.UNAVAILABLE] * 1000
        await fleet.stub.CommitGroup(commit())
        await eventually(lambda: fleet.shards[0].held["digits"].layout_version == 1)
        await fleet.stop_coordinator()
        fleet.shards[1].settle_errors.clear()
        assert fleet.shards[1].held["digits"].layout_version == 0
        await fleet.start_coordinator()
        await fleet.register()
        await eventually(lambda: fleet.shards[1].held["digits"].layout_version == 1)
        await fleet.stub.CommitGroup(commit())
        joined = await fleet.join()
        assert (joined.layout.version, len(joined.run.rates)) == (1, 2)
        fleet.allow()
        await fleet.until(lambda state: state.step >= 1)
        assert {request.layout_version for request in fleet.shards[0].gathers} == {1}

    play(tmp_path, scenario)
