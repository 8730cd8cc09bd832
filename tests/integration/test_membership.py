"""Workers that come, go, wait, give up and die, against real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import stepd
from tests.integration.servers import eventually
from tests.integration.training import at_once
from tests.patience import PATIENCE_S

Connect = Callable[..., stepd.Client]

F4 = np.float32


def test_workers_come_and_go(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0))
    grads = {"w": np.ones(4, F4)}
    with run.join(name="first") as first:
        assert (first.id, first.rank) == ("first", 0)
        assert first.step(grads).step == 1
        with run.join(name="second") as second:
            assert second.rank == 1
            assert [(w.id, w.rank) for w in run.info().workers] == [("first", 0), ("second", 1)]
            steps = at_once(lambda rank: (first, second)[rank].step(grads).step, 2)
            assert steps == [2, 2]
        assert first.step(grads).step == 3
    assert run.info().workers == []
    with pytest.raises(stepd.FailedPrecondition, match=r"worker 'first' \(rank 0\) has left") as caught:
        first.step(grads)
    assert caught.value.reason == "NOT_A_MEMBER"
    first.leave()


def test_who_joins_in_the_middle_of_a_round_begins_with_what_it_ends_with(client: stepd.Client, name: str) -> None:
    """Its first pull waits for the round under way: a gradient of the version before would be one step old."""
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0))
    grads = {"w": np.ones(4, F4)}
    with run.join() as first, run.join() as second:
        first.push(grads)
        # Before the coordinator knows of it, a newcomer is asked as well.
        eventually(lambda: [w.awaited is None for w in run.info().workers] == [True, False], "the first is there")
        with run.join() as third:
            pulled: list[float] = []
            waiting = threading.Thread(target=lambda: pulled.append(float(third.pull()["w"][0])))
            waiting.start()
            time.sleep(0.3)
            assert pulled == []
            second.push(grads)
            waiting.join(PATIENCE_S)
            assert pulled == [-1.0]
            assert at_once(lambda rank: (first, second, third)[rank].step(grads).step, 3) == [2, 2, 2]


def test_a_rank_is_taken_over_by_who_comes_with_it_and_a_full_run_is_told(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))
    older = run.join(1, lease=1.0)
    with run.join(1, lease=1.0) as newer:
        assert newer.rank == 1
        with pytest.raises(stepd.FailedPrecondition, match="came later with the same rank") as caught:
            older.step({"w": np.ones(4, F4)})
        assert caught.value.reason == "NOT_A_MEMBER"
        with run.join(lease=1.0) as other:
            assert other.rank == 0
            # Told once both have been heard of: before that, one of them might be dead.
            with pytest.raises(stepd.FailedPrecondition) as full:
                run.join(lease=1.0)
            assert full.value.reason == "RUN_FULL"


def test_waiting_for_workers_that_do_not_come_ends_with_what_is_missing(connect: Connect, name: str) -> None:
    run = connect(3, retry_for=1.5).create_run(
        name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=3)
    )
    with run.join() as worker:
        began = time.monotonic()
        with pytest.raises(stepd.DeadlineExceeded, match="waits for 2 more workers, has 1") as caught:
            worker.step({"w": np.ones(4, F4)})
        assert time.monotonic() - began > 1.0
        assert caught.value.details["workers"] == 1


def test_a_step_that_gave_up_is_still_on_its_way_and_counts_once(connect: Connect, name: str) -> None:
    client = connect(3, retry_for=1.0)
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))
    with run.join(0) as worker:
        grads = {"w": np.full(4, 2, F4)}
        with pytest.raises(stepd.DeadlineExceeded):
            worker.step(grads)
        client._session.retry_for = PATIENCE_S  # from here on the other comes
        grads["w"][:] = 1000  # the array is the caller's again

        def work(rank: int) -> stepd.StepResult:
            if rank == 0:
                return worker.step({"w": np.full(4, 6, F4)})
            with run.join(1) as late:
                assert (late.step({"w": np.full(4, 4, F4)}).params["w"] == -3).all()
                return late.step({"w": np.full(4, 8, F4)})

        for result in at_once(work, 2):
            assert result.step == 2
            assert (result.params["w"] == -10).all()


def test_ctrl_c_ends_a_step_and_the_next_goes_on(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))
    with run.join(0) as worker:
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            worker.step({"w": np.full(4, 2, F4)})
        with run.join(1) as other:
            assert other.push({"w": np.full(4, 4, F4)}).round == 0
            results = at_once(lambda rank: (worker, other)[rank].step({"w": np.full(4, 4, F4)}), 2)
            for result in results:
                assert result.step == 2
                assert (result.params["w"] == -7).all()


def stand_still(worker: stepd.Worker, seconds: float) -> None:
    """As if its process was stopped: nothing of the library runs."""
    loop = worker._membership._task.get_loop()
    loop.call_soon_threadsafe(time.sleep, seconds)


def test_a_worker_that_stood_still_has_its_place_back_and_what_had_arrived_counts(
    connect: Connect, client: stepd.Client, name: str
) -> None:
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))
    with connect(3).run(name).join(0, name="ann", lease=1.0) as ann, run.join(1) as bob:
        assert ann.push({"w": np.full(4, 2, F4)}).status == "accepted"
        before = ann._membership.member.incarnation
        stand_still(ann, 3.0)
        eventually(lambda: [worker.id for worker in run.info().workers] == ["worker-1"], "ann is lost")
        result = bob.step({"w": np.full(4, 4, F4)})
        assert (result.step, result.params["w"][0]) == (1, -3.0)
        assert "ann (rank 0) is gone since" in str(run.info().problem)
        assert ann.pull()["w"][0] == -3.0
        eventually(lambda: len(run.info().workers) == 2, "ann is back")
        assert (ann.id, ann.rank, ann._membership.member.incarnation > before) == ("ann", 0, True)
        assert at_once(lambda rank: (ann, bob)[rank].step({"w": np.ones(4, F4)}).step, 2) == [2, 2]


def test_a_worker_without_which_the_others_went_on_is_told_and_begins_with_what_there_is(
    connect: Connect, client: stepd.Client, name: str
) -> None:
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0))
    grads = {"w": np.ones(4, F4)}
    with connect(3).run(name).join(0, name="ann", lease=1.0) as ann, run.join(1, name="bob") as bob:
        stand_still(ann, 3.0)
        assert bob.step(grads).step == 1
        assert bob.step(grads).step == 2
        before = ann._membership.member.incarnation
        eventually(lambda: ann._membership.member.incarnation > before, "ann is back")
        stale = ann.step(grads)
        assert (stale.receipt.status, stale.step, stale.params["w"][0]) == ("stale", 2, -2.0)
        results = at_once(lambda rank: (ann, bob)[rank].step(grads), 2)
        assert [(result.step, result.receipt.status) for result in results] == [(3, "accepted")] * 2


def test_a_name_that_is_taken_over_ends_the_older_membership(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))
    older = run.join(0, name="ann", lease=1.0)
    with run.join(name="ann") as newer:
        assert newer.rank == 0
        with pytest.raises(stepd.FailedPrecondition, match=r"worker 'ann' \(rank 0\) is no member of run") as caught:
            older.step({"w": np.ones(4, F4)})
        assert caught.value.reason == "NOT_A_MEMBER"
        older.leave()
        assert [worker.id for worker in run.info().workers] == ["ann"]


def test_a_worker_that_dies_is_noticed_and_the_others_go_on(connect: Connect, name: str) -> None:
    run = connect(3).create_run(name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0))
    script = (
        "import sys, stepd; run = stepd.connect(sys.argv[1]).run(sys.argv[2]); "
        "worker = run.join(1, lease=1.0); print('joined', flush=True); sys.stdin.read()"
    )
    with run.join(0) as worker:
        command = [sys.executable, "-c", script, connect(3).target, name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"joined\n"
            threading.Timer(0.5, other.kill).start()
            assert worker.step({"w": np.ones(4, F4)}).step == 1


def test_two_worker_processes_train_together(connect: Connect, name: str) -> None:
    client = connect(3)
    script = (
        "import sys, numpy as np, stepd\n"
        "with stepd.connect(sys.argv[1]) as client:\n"
        "    run = client.create_run(sys.argv[2], {'w': np.zeros(100_000, np.float32)}, optimizer=stepd.SGD(lr=1.0),\n"
        "                            sync=stepd.Sync(workers=2), exist_ok=True)\n"
        "    with run.join() as worker:\n"
        "        for step in range(5):\n"
        "            result = worker.step({'w': np.full(100_000, 1.0 + 2 * worker.rank, np.float32)})\n"
        "        print(result.step, result.params['w'].min(), result.params['w'].max())\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, client.target, name]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out, err) == (0, "5 -10.0 -10.0\n", "")
    assert client.run(name).step_count == 5
