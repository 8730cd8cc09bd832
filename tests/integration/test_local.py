"""Fleets of a `with` block, and connections to them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stepd
from tests.patience import PATIENCE_S

F4 = np.float32
ONES = {"w": np.ones(4, F4)}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(condition: Callable[[], object], seconds: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def test_a_fleet_ends_with_its_block_and_leaves_nothing(tmp_path: Path) -> None:
    with stepd.local(2, data_dir=tmp_path / "data", env={"STEPD_TEST": "yes"}) as fleet:
        pids = [fleet.coordinator.pid, *(shard.pid for shard in fleet.shards)]
        assert [shard.index for shard in fleet.shards] == [0, 1]
        assert fleet.coordinator.target == fleet.target
        assert all(b"STEPD_TEST=yes" in Path(f"/proc/{pid}/environ").read_bytes() for pid in pids)
        with stepd.connect(fleet.target) as client:
            assert [shard.pid for shard in client.fleet().shards] == pids[1:]
        assert (tmp_path / "data" / "fleet.json").exists()
    assert not any(map(alive, pids))
    fleet.stop()
    with pytest.raises(stepd.Unavailable, match="this local fleet is stopped"):
        _ = fleet.shards


def test_a_killed_shard_is_started_again_and_training_goes_on() -> None:
    with stepd.local(2) as fleet, stepd.connect(fleet.target) as client:
        params = {"w": np.zeros(300_000, F4)}
        with client.create_run("a", params, optimizer=stepd.SGD(lr=1.0)).join() as worker:
            grads = {"w": np.ones(300_000, F4)}
            for step in range(1, 4):
                assert worker.step(grads).step == step
                victim = fleet.shards[step % 2]
                os.kill(victim.pid, signal.SIGKILL)
            result = worker.step(grads)
            assert result.step == 4
            assert (result.params["w"] == -4).all()
        assert soon(lambda: fleet.shards[0].pid != victim.pid and all(alive(shard.pid) for shard in fleet.shards))


def test_a_shard_that_is_killed_while_a_run_is_loaded_does_not_spoil_it() -> None:
    with stepd.local(2) as fleet, stepd.connect(fleet.target) as client:
        killing = threading.Timer(0.1, os.kill, (fleet.shards[1].pid, signal.SIGKILL))
        killing.start()
        run = client.create_run("a", {"w": np.ones(20_000_000, F4)}, optimizer=stepd.SGD(lr=1.0))
        killing.join()
        assert (run.pull()["w"] == 1).all()


def test_a_fleet_does_not_outlive_a_killed_parent() -> None:
    script = (
        "import stepd, time; fleet = stepd.local(1); "
        "print(fleet.coordinator.pid, fleet.shards[0].pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        assert all(map(alive, pids))
        parent.kill()
    assert soon(lambda: not any(map(alive, pids)))


def test_a_fleet_that_nobody_stopped_ends_with_the_program() -> None:
    script = "import stepd; fleet = stepd.local(1); print(fleet.coordinator.pid, fleet.shards[0].pid)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not any(alive(int(pid)) for pid in done.stdout.split())


def test_a_fleet_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(stepd.Unavailable, match=r"ended with exit code 1; its last lines:\nstepd serve: cannot use"):
        stepd.local(1, data_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shards": 0}, "shards must be an integer from 1 to"),
        ({"shards": "two"}, "got 'two'"),
        ({"checkpoints": "/tmp/c"}, "this version has no checkpoints, got '/tmp/c'"),
        ({"token": "two words"}, "token must be printable"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(stepd.InvalidArgument, match=text):
        stepd.local(**options)


def test_a_token_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with stepd.local(1, token="open-sesame") as fleet:
        folder = fleet._folder
        assert folder is not None
        assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600]
        for token in (None, "wrong"):
            with stepd.connect(fleet.target, token=token) as client, pytest.raises(stepd.Unauthenticated):
                client.runs()
        with stepd.connect(fleet.target, token="open-sesame") as client:
            run = client.create_run("a", ONES, optimizer=stepd.SGD(lr=1.0))
            with run.join() as worker:
                assert worker.step(ONES).step == 1
        monkeypatch.setenv("STEPD_TOKEN", "open-sesame")
        monkeypatch.setenv("STEPD_TARGET", fleet.target)
        with stepd.connect() as client:
            assert client.target == fleet.target
            assert [run.name for run in client.runs()] == ["a"]
    assert not folder.exists()


# --- Connections ----------------------------------------------------------------------------------------------------


def test_a_client_leaves_no_thread_and_no_warning(fleets: Callable[[int], stepd.LocalFleet], name: str) -> None:
    before = set(threading.enumerate())
    client = stepd.connect(fleets(3).target)
    worker = client.create_run(name, ONES, optimizer=stepd.SGD(lr=1.0)).join()
    watch = client.run(name).watch()
    worker.step(ONES)
    client.close()
    client.close()
    worker.leave()
    watch.close()
    # gRPC ends its own thread a moment later.
    assert soon(lambda: {t.name for t in set(threading.enumerate()) - before} <= {"Thread-1 (_poll_wrapper)"})
    for call in (client.runs, worker.pull, lambda: client.run(name)):
        with pytest.raises(stepd.FailedPrecondition, match="this client is closed"):
            call()
    assert repr(client).endswith("closed)")


def test_a_client_that_nobody_closed_is_closed_when_it_is_forgotten(fleets: Callable[[int], stepd.LocalFleet]) -> None:
    target = fleets(3).target
    runs = [stepd.connect(target).create_run("forgotten", ONES, optimizer=stepd.SGD(lr=1.0), exist_ok=True)]
    assert runs[0].step_count == 0, "a run keeps its connection"
    worker = runs[0].join(lease=1.0)
    del worker
    gc.collect()
    assert soon(lambda: not runs[0].info().workers), "a worker that nobody holds does not keep its place"
    runs.clear()
    gc.collect()
    assert soon(lambda: not [t for t in threading.enumerate() if t.name == f"stepd {target}"])


def test_nobody_there_is_told_with_what_was_tried() -> None:
    with (
        stepd.connect("127.0.0.1:9", retry_for=0.5) as client,
        pytest.raises(stepd.Unavailable, match=r"ListRuns \(127.0.0.1:9\) failed \d+ times in .* \(retry_for=0.5\)"),
    ):
        client.runs()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"target": None}, stepd.InvalidArgument, "STEPD_TARGET is not set"),
        ({"target": "localhost"}, stepd.InvalidArgument, "HOST:PORT.*got 'localhost'"),
        ({"target": 7070}, stepd.InvalidArgument, "HOST:PORT.*got 7070"),
        ({"transport": "rdma"}, stepd.InvalidArgument, "transport.*'rdma'"),
        ({"timeout": 0}, stepd.InvalidArgument, "timeout must be a positive number of seconds, got 0"),
        ({"retry_for": -1}, stepd.InvalidArgument, "retry_for.*got -1"),
        ({"tls": "ca.pem"}, stepd.InvalidArgument, "tls.*'ca.pem'"),
        ({"token": "two words"}, stepd.InvalidArgument, "token"),
    ],
)
def test_wrong_connections_are_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object], kind: type[stepd.StepdError], text: str
) -> None:
    monkeypatch.delenv("STEPD_TARGET", raising=False)
    with pytest.raises(kind, match=text) as caught:
        stepd.connect(**{"target": "127.0.0.1:7070", **options})
    assert caught.value.reason == "INVALID_ARGUMENT"
