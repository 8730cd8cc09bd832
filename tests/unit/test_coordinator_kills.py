"""A kill of the coordinator between any two of its writes leaves something sensible.

A life with everything in it is lived once; after each write to its folder the folder is copied. Then a coordinator is
started in each of the copies: what was answered before that write is there, and what was under way is there or not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stepd import specs
from stepd.channel import open_channel
from stepd.schedules import Constant, ReduceOnPlateau
from stepd.v1 import coordinator_pb2 as pb
from stepd_server.coordinator import store as stores
from stepd_server.coordinator.fleet import Fleet as Shards
from stepd_server.coordinator.picture import Clocks
from stepd_server.coordinator.runs import Runs
from stepd_server.coordinator.slots import Slots
from stepd_server.coordinator.store import Store

from .coordinator_bench import FakeShard, Fleet, digits, play, refused

HALVES = ReduceOnPlateau(patience=0, factor=0.5)
ABSENT = "absent"


def seen(data_dir: Path) -> dict[str, Any]:
    """What a coordinator that starts there knows."""
    runs = Runs(Shards(1, open_channel, lambda: 0.0), Store(data_dir), Clocks(lambda: 0.0, lambda: 0.0))
    known: dict[str, Any] = dict.fromkeys(
        ("step", "rates", "members", "groups", "state", "attempt", "schedule"), ABSENT
    )
    for run in runs.all():
        state = run.state()
        known |= {
            "step": state.step,
            "rates": tuple(state.rates),
            "members": {worker.member.worker: worker.member.incarnation for worker in state.workers},
            "groups": len(state.spec.groups),
            "state": run.record.state_id,
            "schedule": state.spec.schedule.rule,
            "attempt": (state.round.round, state.round.attempt),
        }
        assert state.status == pb.RUN_STATUS_RECOVERING, "only a run that was started is taken up again"
        assert len({worker.member.rank for worker in state.workers}) == len(state.workers), "two members of one rank"
    return known


class Life:
    """Attributes:
    copies: of the folder, each with the values that may be found there, and the last attempt that shards had heard of.
    allowed: by what is looked at, the values that may be found now.
    shards: of the fleet.
    """

    def __init__(self, data_dir: Path, copies: Path) -> None:
        self._data_dir = data_dir
        self._folder = copies
        self.allowed: dict[str, list[Any]] = {}
        self.copies: list[tuple[Path, dict[str, list[Any]], tuple[int, int], str]] = []
        self.shards: list[FakeShard] = []

    def copy(self, what: str) -> None:
        path = self._folder / str(len(self.copies))
        shutil.copytree(self._data_dir, path)
        heard = max(((at.id.round, at.id.attempt) for shard in self.shards for at in shard.gathers), default=(-1, 0))
        self.copies.append((path, {key: list(values) for key, values in self.allowed.items()}, heard, what))

    @contextmanager
    def changes(self, **now: Any) -> Iterator[None]:
        """Until the block ends, old or new; from then on, new."""
        for key, value in now.items():
            self.allowed[key] = [*self.allowed.get(key, [ABSENT]), value]
        yield
        for key, value in now.items():
            self.allowed[key] = [value]


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Life:
    life = Life(tmp_path / "data", tmp_path / "copies")

    def noted(place: Any, name: str, about: Callable[..., object]) -> None:
        original = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            if str(life._data_dir) in str(about(*arguments)):
                life.copy(f"{name} {about(*arguments)}")
            return result

        monkeypatch.setattr(place, name, call)

    noted(stores, "write_whole", lambda path, *_: path)
    noted(Slots, "write", lambda slots, _: slots._paths[0])
    for operation in ("unlink", "rename", "mkdir"):
        noted(Path, operation, lambda path, *_: path)
    noted(shutil, "rmtree", lambda path: path)
    return life


def test_after_a_kill_between_any_two_writes_what_was_answered_is_there(  # noqa: PLR0915 (one life)
    life: Life, tmp_path: Path
) -> None:
    async def scenario(fleet: Fleet) -> None:
        life.shards = fleet.shards
        run = digits(workers=None)
        run.groups[0].optimizer.hyperparameters["lr"].number = 0.4
        with life.changes(step=0, rates=(0.4,), members={}, groups=1, state="", schedule=""):
            await fleet.create(run)
        first, second = 10**9 + 1, 10**9 + 2
        with life.changes(members={"a": first}):
            a = (await fleet.join("a", request_id="a")).member
        with life.changes(members={"a": first, "b": second}):
            await fleet.join("b")
        with life.changes(step=1):
            fleet.allow()
            await fleet.until(lambda state: state.step == 1)
        with life.changes(rates=(0.8,)):
            change = pb.UpdateRunRequest(run="digits", request_id="u", rate=pb.RateChange(lr=0.8))
            await fleet.stub.UpdateRun(change)
        with life.changes(schedule="ReduceOnPlateau"):
            plateau = specs.schedule_to_proto(HALVES)
            await fleet.stub.UpdateRun(pb.UpdateRunRequest(run="digits", request_id="p", schedule=plateau))
        await fleet.stub.RenewLease(pb.RenewLeaseRequest(run="digits", member=a, observed=[1.0]))
        with life.changes(rates=(0.4,)):
            report = pb.RenewLeaseRequest(run="digits", member=a, observed=[1.0], observed_before=1)
            await fleet.stub.RenewLease(report)
            await fleet.stub.RenewLease(report)
        # A plateau that was waited for belongs to the schedule before: with another, rates begin anew.
        life.allowed["rates"] = [(0.4,), (0.8,)]
        with life.changes(schedule="Constant", rates=(0.8,)):
            constant = specs.schedule_to_proto(Constant())
            await fleet.stub.UpdateRun(pb.UpdateRunRequest(run="digits", request_id="c", schedule=constant))
        with life.changes(groups=2, rates=(0.8, 0.8)):
            added = pb.AddGroupRequest(request_id="g", run="digits", group=run.groups[0], parameters=run.parameters)
            added.parameters[0].name = "more"
            added.group.optimizer.hyperparameters["lr"].number = 0.8
            await fleet.stub.AddGroup(added)
            await fleet.stub.CommitGroup(pb.CommitGroupRequest(run="digits", request_id="g"))
        with life.changes(state="s"):
            await fleet.stub.LoadState(pb.LoadStateRequest(run="digits", state_id="s"))
        with life.changes(members={"a": first + 2, "b": second}):
            await fleet.join("a")
        with life.changes(members={"a": first + 2}):
            fleet.now += 6
            member = (await fleet.state()).workers[0].member
            await fleet.stub.RenewLease(pb.RenewLeaseRequest(run="digits", member=member))
            fleet.now += 6
            await fleet.register()
            fleet.service.tick()
        with life.changes(members={}):
            await fleet.stub.LeaveRun(pb.LeaveRunRequest(run="digits", member=member))
        with life.changes(**dict.fromkeys(life.allowed, ABSENT)):
            await fleet.stub.DeleteRun(pb.DeleteRunRequest(run="digits"))

    play(tmp_path / "data", scenario)
    for path, allowed, heard, what in life.copies:
        known = seen(path)
        for key, values in allowed.items():
            assert known[key] in values, f"{key} after {what}: {known}"
        if known["attempt"] != ABSENT:
            assert known["attempt"] > heard, f"after {what} an attempt is given away that shards have heard of"
    assert heard >= (1, 3)
    kinds = {what.split()[0] + " " + Path(what.split()[1]).name for *_, what in life.copies}
    assert {"write_whole run", "write decision.0", "write attempt.0", "write plateaus.0", "write epoch.0"} <= kinds
    assert {f"write_whole {10**9 + n}" for n in (1, 2, 3)} | {f"unlink {10**9 + n}" for n in (1, 2, 3)} <= kinds
    assert any(kind.startswith("rename") for kind in kinds)


def test_what_was_done_once_is_not_done_again_by_a_repeat_after_a_restart(tmp_path: Path) -> None:
    """Though others have changed the same thing meanwhile."""

    async def scenario(fleet: Fleet) -> None:
        run = digits(workers=None)
        created = await fleet.create(run, request_id="c")
        ours = pb.UpdateRunRequest(run="digits", request_id="ours", rate=pb.RateChange(lr=0.5))
        theirs = pb.UpdateRunRequest(run="digits", request_id="theirs", rate=pb.RateChange(lr=0.25))
        state = pb.LoadStateRequest(run="digits", state_id="ours")
        state.groups.add().hyperparameters["lr"].number = 0.125
        group = pb.AddGroupRequest(request_id="g", run="digits", group=run.groups[0], parameters=run.parameters)
        group.parameters[0].name = "more"
        commit = pb.CommitGroupRequest(run="digits", request_id="g")
        for change in (ours, theirs):
            await fleet.stub.UpdateRun(change)
        await fleet.stub.LoadState(state)
        await fleet.stub.LoadState(pb.LoadStateRequest(run="digits", state_id="theirs"))
        await fleet.stub.UpdateRun(pb.UpdateRunRequest(run="digits", rate=pb.RateChange(lr=1.0)))
        await fleet.stub.AddGroup(group)
        await fleet.stub.CommitGroup(commit)
        joined = await fleet.join("a", request_id="a")
        for restart in (False, True):
            if restart:
                await fleet.stop_coordinator()
                await fleet.start_coordinator()
                await fleet.register()
            await fleet.stub.UpdateRun(ours)
            await fleet.stub.LoadState(state)
            again = await fleet.stub.AddGroup(group)
            assert len(again.spec.groups) == 2
            await fleet.stub.CommitGroup(commit)
            assert (await fleet.join("a", request_id="a")).member == joined.member
            assert (await fleet.stub.CreateRun(pb.CreateRunRequest(request_id="c", spec=run))).run.step == 0
            await fleet.stub.StartRun(pb.StartRunRequest(run="digits", run_id=created.run.run_id))
            found = await fleet.state()
            assert list(found.rates) == [1.0, 0.1]
            assert len(found.spec.groups) == 2
        await fleet.stub.DeleteRun(pb.DeleteRunRequest(run="digits", run_id=created.run.run_id))
        await fleet.create(run, request_id="another")
        for late in (
            fleet.stub.DeleteRun(pb.DeleteRunRequest(run="digits", run_id=created.run.run_id)),
            fleet.stub.StartRun(pb.StartRunRequest(run="digits", run_id=created.run.run_id)),
        ):
            async with refused("RUN_NOT_FOUND"):
                await late
        assert (await fleet.state()).run_id not in ("", created.run.run_id)

    play(tmp_path, scenario)
