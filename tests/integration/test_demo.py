"""The demo from the outside: it reaches its accuracy, and however it ends nothing of it is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import stepd
from tests.patience import PATIENCE_S

DEMO = [sys.executable, "-m", "stepd.cli", "demo"]
WORKER = [sys.executable, "-m", "stepd.demo.worker"]
# Long enough that a test can interfere.
LONG = ["--steps", "100000"]


def wait_for(what: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)


def commands() -> dict[int, tuple[int, str]]:
    """Parent and command line of every process, by id; zombies have ended and are left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(folder.name)] = (int(parent), (folder / "cmdline").read_text().replace("\0", " "))
            except (OSError, ValueError):  # it has just ended
                continue
    return found


def descendants(pid: int) -> dict[int, str]:
    every = commands()
    found: dict[int, str] = {}
    generation = {pid}
    while generation:
        generation = {child for child, (parent, _) in every.items() if parent in generation}
        found |= {child: every[child][1] for child in generation}
    return found


def workers_of(pid: int) -> list[int]:
    return sorted(child for child, command in descendants(pid).items() if "stepd.demo.worker" in command)


def gone(pids: set[int]) -> bool:
    return pids.isdisjoint(commands())


@contextmanager
def demo(tmp_path: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*DEMO, "--out", str(tmp_path / "demo.svg"), *words],
            stdout=out,
            stderr=err,
            start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        left = set(descendants(process.pid))
        process.kill()
        process.wait()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def training(process: subprocess.Popen[bytes], tmp_path: Path) -> set[int]:
    """Wait until steps are made; the ids of all processes of the demo."""
    wait_for(lambda: process.poll() is not None or "step " in (tmp_path / "out").read_text())
    assert process.poll() is None, (tmp_path / "err").read_text()
    return set(descendants(process.pid))


def test_it_learns_the_digits_draws_them_and_leaves_nothing_behind(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    ended = subprocess.run(
        [*DEMO, "--json", "--out", str(picture)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout)
    assert outcome["good"] is True
    assert outcome["accuracy"] >= 0.96
    assert outcome["steps"] == 600
    assert 0 < outcome["clipped"] < 500
    assert outcome["picture"] == str(picture)
    assert len(outcome["shard_pids"]) == 2
    assert gone(set(outcome["shard_pids"]))
    assert "step   600/600  loss" in ended.stderr
    lines = list(ET.parse(picture).iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) >= 3


def test_an_accuracy_that_is_too_low_is_a_failure_and_says_so(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*DEMO, "--steps", "5", "--workers", "3", "--shards", "1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=tmp_path,
    )
    assert ended.returncode == 1, ended.stderr
    assert "less than the 95%" in ended.stdout
    assert str(tmp_path / "stepd-demo.svg") in ended.stdout
    assert (tmp_path / "stepd-demo.svg").is_file()
    assert ended.stderr == ""


def test_a_picture_that_cannot_be_written_is_said_before_the_training(tmp_path: Path) -> None:
    for out in (tmp_path / "nowhere" / "demo.svg", tmp_path):
        ended = subprocess.run(
            [*DEMO, "--out", str(out)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert ended.returncode == 1
        assert ended.stderr.startswith("stepd: INVALID_ARGUMENT: ")
        assert len(ended.stderr.splitlines()) == 1
        assert str(out) in ended.stderr


def test_ctrl_c_ends_everything_quietly(tmp_path: Path) -> None:
    with demo(tmp_path, *LONG) as process:
        everything = training(process, tmp_path)
        assert len(everything) >= 4  # two workers and two shards
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=PATIENCE_S) == 130
        wait_for(lambda: gone(everything))
        assert (tmp_path / "err").read_text() == ""


@pytest.mark.slow
def test_sigterm_ends_everything(tmp_path: Path) -> None:
    with demo(tmp_path, *LONG) as process:
        everything = training(process, tmp_path)
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 128 + signal.SIGTERM
        wait_for(lambda: gone(everything))


@pytest.mark.slow
def test_when_the_demo_is_killed_its_processes_end(tmp_path: Path) -> None:
    with demo(tmp_path, *LONG) as process:
        everything = training(process, tmp_path)
        process.kill()
        wait_for(lambda: gone(everything))


def test_a_worker_that_dies_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    with demo(tmp_path, *LONG) as process:
        everything = training(process, tmp_path)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        assert process.wait(timeout=PATIENCE_S) == 1
        assert (tmp_path / "err").read_text() == "stepd: WORKER_FAILED: worker 0 ended with exit code -9\n"
        wait_for(lambda: gone(everything))


# --- The worker by itself, as on Kubernetes ---------------------------------------------------------------------


def worker(target: str, rank: int, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*WORKER, "--workers", "2", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"STEPD_TARGET": target, "JOB_COMPLETION_INDEX": str(rank), "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def test_workers_find_their_place_by_the_index_of_their_job() -> None:
    with stepd.local(shards=2) as fleet:
        processes = [worker(fleet.target, rank, "--steps", "30") for rank in range(2)]
        (first, second) = [ended(process) for process in processes]
    assert first[0] == 0, first[2]
    assert second == (0, "", "")
    assert first[1].endswith("of 358 held-out digits recognised after 30 steps\n")


@pytest.mark.slow
def test_a_worker_that_was_killed_takes_its_place_again_and_the_run_ends_with_the_same_bits() -> None:
    results = []
    for killed in (False, True):
        with stepd.local(shards=2) as fleet, stepd.connect(fleet.target) as client:
            steps = ("--steps", "60")
            processes = [worker(fleet.target, rank, *steps) for rank in range(2)]
            if killed:
                wait_for(lambda: bool(client.runs()) and client.run("digits").step_count > 20)
                processes[1].kill()
                ended(processes[1])
                processes[1] = worker(fleet.target, 1, *steps)
            for code, _, err in map(ended, processes):
                assert code == 0, err
            run = client.run("digits")
            assert run.step_count == 60
            results.append({name: value.tobytes() for name, value in run.pull().items()})
    assert results[0] == results[1]


def test_a_worker_without_a_fleet_says_so_in_one_line(vacant: str) -> None:
    code, out, err = ended(worker(vacant, 1, "--retry-for", "1"))
    assert (code, out) == (1, "")
    assert err.startswith("stepd demo worker 1: UNAVAILABLE: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "words", [["--rank", "2"], ["--rank", "-1"], ["--steps", "0"], ["--rank", "first"]], ids=" ".join
)
def test_wrong_usage_of_a_worker_is_exit_code_2(words: list[str]) -> None:
    """By which Kubernetes knows that another try cannot help."""
    code, out, err = ended(worker("127.0.0.1:1", 0, *words))
    assert (code, out) == (2, "")
    assert "usage: " in err
