"""Changes whose answers are lost, also with the coordinator that gave them, are done once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

import stepd
from tests.integration.lossy import LossyDoor, Then

F4 = np.float32


def nothing() -> None:
    """The answer is lost, and nothing else."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[stepd.LocalFleet]:
    with stepd.local(shards=2) as fleet:
        yield fleet


@pytest.fixture
def door(fleet: stepd.LocalFleet) -> Iterator[LossyDoor]:
    with LossyDoor(fleet.target) as door:
        yield door


def kill_coordinator(fleet: stepd.LocalFleet) -> Then:
    return lambda: os.kill(fleet.coordinator.pid, signal.SIGKILL)


# Each kill takes the supervisor longer to make up for than the one before.
KILLED = {"UpdateRun", "JoinRun", "LoadState", "CommitGroup"}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [set(), KILLED], ids=["answers lost", "coordinator killed"])
def test_every_change_is_done_once_though_its_answer_is_lost(
    fleet: stepd.LocalFleet, door: LossyDoor, name: str, killed: set[str]
) -> None:
    def lose(method: str, then: Then = nothing) -> None:
        kill = kill_coordinator(fleet) if method in killed else nothing
        door.lose(method, lambda: (kill(), then()))

    with (
        stepd.connect(door.target, timeout=20.0, retry_for=60.0) as client,
        stepd.connect(fleet.target, timeout=20.0, retry_for=60.0) as other,
    ):
        for method in ("CreateRun", "StartRun"):
            lose(method)
        run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0, momentum=0.5))
        theirs = other.run(name)

        # Others change the same thing before the repeat is there: theirs came later and holds.
        lose("UpdateRun", lambda: theirs.set_lr(0.25))
        run.set_lr(0.5)
        assert run.get_lr() == [0.25]

        lose("JoinRun")
        worker = run.join(0, lease=20.0)
        assert [member.id for member in theirs.info().workers] == [worker.id]
        assert (worker.step({"w": np.ones(4, F4)}).params["w"] == -0.25).all()

        state = run.state_dict()
        state["param_groups"][0]["lr"] = 0.125
        lose("LoadState", lambda: theirs.set_lr(0.0625))
        run.load_state_dict(state)
        assert run.get_lr() == [0.0625]

        for method in ("AddGroup", "CommitGroup"):
            lose(method)
        run.add_param_group(stepd.ParamGroup({"b": np.ones(2, F4)}, lr=2.0))
        assert run.get_lr() == [0.0625, 2.0]
        result = worker.step({"w": np.ones(4, F4), "b": np.ones(2, F4)})
        assert result.step == 2
        assert sorted(result.params) == ["b", "w"]
        assert (result.params["w"] == -0.25 - 0.0625 * 1.5).all()
        assert (result.params["b"] == -1).all()

        lose("LeaveRun")
        worker.leave()
        assert theirs.info().workers == []

        # The name is another run's before the repeat is there.
        lose("DeleteRun", lambda: other.create_run(name, {"v": np.zeros(1, F4)}, optimizer=stepd.SGD()))
        run.delete()
        assert other.run(name).info().elements == 1
        assert door.loses == []
        other.run(name).delete()


def test_a_run_that_was_deleted_meanwhile_is_not_found(fleet: stepd.LocalFleet, door: LossyDoor, name: str) -> None:
    with stepd.connect(door.target, retry_for=10.0) as client:
        run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD())
        run.delete()
        with pytest.raises(stepd.NotFound):
            run.delete()
