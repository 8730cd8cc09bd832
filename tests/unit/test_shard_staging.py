"""States of the optimizer on a shard: nothing changes until it is decided, and what has begun is finished."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepd.errors import FailedPrecondition, InvalidArgument, NotFound
from stepd.rules import SGD, ScheduleFreeSGD
from stepd.specs import optimizer_to_proto
from stepd.v1 import run_pb2, shard_control_pb2, shard_pb2

from .shard_bench import Fleet, arrays, chunks, run


def header(fleet: Fleet, state_id: str, updates: int = 3) -> shard_pb2.StageStateHeader:
    slices = len(fleet.shards[0].arena.piece.slices)
    return shard_pb2.StageStateHeader(run="run", state_id=state_id, updates=[updates] * slices)


def commit(state_id: str, rule: SGD, round: int = 0) -> shard_control_pb2.CommitStateRequest:
    groups = [run_pb2.GroupSpec(optimizer=optimizer_to_proto(rule))]
    return shard_control_pb2.CommitStateRequest(run="run", state_id=state_id, round=round, groups=groups)


MOMENTUM = SGD(lr=1.0, momentum=0.5)


def test_a_state_is_used_when_it_is_committed_and_not_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), MOMENTUM)
        await fleet.start()
        shard = fleet.shards[0]
        staging, buffer = shard.staging, shard.arena.buffers[0][0]
        await staging.stage(header(fleet, "a"), chunks(np.full(staging.size, 7, np.float32)))
        staging.hold("a")
        staging.hold("a")
        await staging.stage(header(fleet, "b"), chunks(np.full(staging.size, 8, np.float32)))
        assert not buffer.any()
        with pytest.raises(NotFound, match="no state 'c' is staged"):
            staging.hold("c")
        with pytest.raises(FailedPrecondition, match="told to use the state 'b' from round 0 on, but 'a' is held"):
            await shard.commit_state(commit("b", MOMENTUM))
        await shard.commit_state(commit("a", SGD(lr=1.0, momentum=0.25)))
        await shard.commit_state(commit("a", MOMENTUM))
        assert (buffer == 7).all()
        assert (shard.arena.updates == 3).all()
        assert shard.arena.piece.groups[0].rule == SGD(lr=1.0, momentum=0.25)
        await shard.close()

    run(scenario)


def test_a_state_that_is_not_whole_or_not_finite_leaves_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), MOMENTUM)
        await fleet.start()
        staging = fleet.shards[0].staging
        whole = np.zeros(staging.size, np.float32)
        poisoned = whole.copy()
        poisoned[11] = np.inf
        for data, message in ((whole[:-1], "ended after"), (poisoned, "must be finite")):
            with pytest.raises(InvalidArgument, match=message):
                await staging.stage(header(fleet, "a"), chunks(data))
            assert not (fleet.shards[0].arena.folder / "staged.data").exists()
        short = header(fleet, "a")
        del short.updates[0]
        with pytest.raises(InvalidArgument, match="updates must be"):
            await staging.stage(short, chunks(whole))
        with pytest.raises(NotFound):
            staging.hold("a")

    run(scenario)


@pytest.mark.parametrize("begun", [False, True])
def test_a_process_that_ends_keeps_what_is_held_and_finishes_what_has_begun(tmp_path: Path, begun: bool) -> None:
    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), MOMENTUM)
        await fleet.start()
        staging = fleet.shards[0].staging
        await staging.stage(header(fleet, "a"), chunks(np.full(staging.size, 7, np.float32)))
        staging.hold("a")
        request = commit("a", MOMENTUM)
        if begun:
            (fleet.shards[0].arena.folder / "commit.pb").write_bytes(request.SerializeToString())
        again = fleet.open(0)
        assert again.staging.state_id == ("a" if begun else "")
        assert (again.arena.buffers[0][0] == (7 if begun else 0)).all()
        await again.commit_state(request)
        assert (again.arena.buffers[0][0] == 7).all()
        assert {path.name for path in again.arena.folder.iterdir()}.isdisjoint({"held.data", "held.pb", "commit.pb"})
        assert fleet.open(0).staging.state_id == "a"

    run(scenario)


def test_buffers_that_begin_as_their_parameter_begin_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), ScheduleFreeSGD(0.1))
        await fleet.start()
        shard = fleet.shards[0]
        told = header(fleet, "a", updates=0)
        told.scalars.extend([-1.0, 0.0] * len(told.updates))
        await shard.staging.stage(told, chunks(np.zeros(shard.staging.size, np.float32)))
        shard.staging.hold("a")
        request = commit("a", MOMENTUM)
        request.groups[0].optimizer.CopyFrom(optimizer_to_proto(ScheduleFreeSGD(0.1)))
        await shard.commit_state(request)
        assert shard.arena.buffers[0][0].tobytes() == shard.arena.parameters.tobytes()

    run(scenario)
