"""The command line as a user meets it: real processes, their output and their exit codes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import stepd
from tests.patience import PATIENCE_S

STEPD = [sys.executable, "-m", "stepd.cli"]


def call(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("STEPD_")}
    # Wide enough that no table is folded.
    return subprocess.run(
        [*STEPD, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env=env | {"COLUMNS": "160"} | environment,
    )


def one_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


@pytest.fixture(scope="module")
def fleet() -> Iterator[stepd.LocalFleet]:
    with stepd.local(shards=2) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def run(fleet: stepd.LocalFleet) -> Iterator[stepd.Run]:
    """A run of two groups with one worker of the two it needs."""
    with stepd.connect(fleet.target) as client:
        run = client.create_run(
            "letters",
            [
                stepd.ParamGroup({"w": np.zeros((64, 10), np.float32)}),
                stepd.ParamGroup({"b": np.zeros(10, np.float32)}, lr=0.5),
            ],
            optimizer=stepd.AdamW(lr=1e-3, weight_decay=0.1),
            schedule=stepd.Cosine(total_steps=100),
            clip=stepd.ClipNorm(1.0),
            sync=stepd.Sync(workers=2),
        )
        with run.join(name="alice") as worker:
            worker.report(loss=0.5)
            yield run


# --- Usage ------------------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    shown = call("--help")
    assert shown.returncode == 0
    for command in ("serve", "coordinator", "shard", "status", "runs", "demo"):
        assert re.search(rf"^ +{command}\s", shown.stdout, re.MULTILINE), command


def test_version() -> None:
    shown = call("--version")
    assert shown.returncode == 0
    assert re.fullmatch(r"stepd \S.*\n", shown.stdout)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["status", "--unknown"],
        ["status", "one", "two"],
        ["demo", "--workers", "0"],
        ["demo", "--shards", "two"],
        ["demo", "--steps", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    failed = call(*words)
    assert failed.returncode == 2
    assert "usage: stepd" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("command", ["serve", "coordinator", "shard"])
def test_server_commands_are_the_servers_own(command: str) -> None:
    shown = call(command, "--help")
    assert shown.returncode == 0
    assert "--listen" in shown.stdout


def test_the_library_alone_does_not_load_the_server() -> None:
    script = "import sys, stepd, stepd.cli; sys.exit(any(name.startswith('stepd_server') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=PATIENCE_S).returncode == 0


# --- Failures ---------------------------------------------------------------------------------------------------


def test_a_fleet_that_is_not_there_is_one_line(vacant: str) -> None:
    failed = call("status", "--target", vacant)
    assert failed.returncode == 1
    assert failed.stdout == ""
    said = one_line(failed.stderr)
    assert said.startswith("stepd: UNAVAILABLE: ")
    assert vacant in said


def test_a_run_that_is_not_there_is_one_line(fleet: stepd.LocalFleet) -> None:
    failed = call("status", "nobody", "--target", fleet.target)
    assert failed.returncode == 1
    said = one_line(failed.stderr)
    assert said.startswith("stepd: RUN_NOT_FOUND: ")
    assert "nobody" in said


@pytest.mark.parametrize("name", ["../digits", "a/b", "", "x" * 300])
def test_a_name_that_can_be_no_run_is_one_line(fleet: stepd.LocalFleet, name: str) -> None:
    failed = call("status", name, "--target", fleet.target)
    assert failed.returncode == 1
    assert re.match(r"stepd: (INVALID_ARGUMENT|RUN_NOT_FOUND): ", one_line(failed.stderr))


def test_a_certificate_that_is_not_there_is_one_line(fleet: stepd.LocalFleet, tmp_path: Path) -> None:
    failed = call("runs", "--target", fleet.target, "--ca", str(tmp_path / "ca.pem"))
    assert failed.returncode == 1
    assert "ca.pem" in one_line(failed.stderr)


def test_a_reader_that_stops_reading_is_no_error(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run(
            [*STEPD, "runs", "--target", fleet.target],
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE_S,
        )
    assert ended.stderr == b""


# --- Status -----------------------------------------------------------------------------------------------------


def test_status_shows_the_fleet_and_its_runs(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    shown = call("status", "--target", fleet.target)
    assert shown.returncode == 0, shown.stderr
    assert "2 of 2 ready" in shown.stdout
    for shard in fleet.shards:
        assert re.search(
            rf"^ *{shard.index}  {re.escape(shard.target)} +{shard.pid}  ready$", shown.stdout, re.MULTILINE
        )
    assert re.search(r"^letters  waiting +0 +1 of 2 +0.001, 0.5 ", shown.stdout, re.MULTILINE), shown.stdout


def test_status_as_json(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    shown = call("status", "--json", "--target", fleet.target)
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert document["fleet"]["target"] == fleet.target
    assert document["fleet"]["ready"] is True
    assert [(shard["index"], shard["pid"]) for shard in document["fleet"]["shards"]] == [
        (shard.index, shard.pid) for shard in fleet.shards
    ]
    assert [run["name"] for run in document["runs"]] == ["letters"]


def test_runs_as_json_and_as_a_table(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    document = json.loads(call("runs", "--json", "--target", fleet.target).stdout)
    assert [found["name"] for found in document["runs"]] == ["letters"]
    table = call("runs", "--target", fleet.target).stdout.splitlines()
    assert table[0].split() == ["RUN", "STATUS", "STEP", "WORKERS", "RATE", "NORM", "SIZE"]
    assert table[1].startswith("letters  waiting")


def test_status_of_a_run(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    shown = call("status", "letters", "--target", fleet.target)
    assert shown.returncode == 0, shown.stderr
    fields = dict(re.findall(r"^(\w[\w ]*?)  +(.*)$", shown.stdout.split("\n\n")[0], re.MULTILINE))
    assert fields["run"] == "letters"
    assert fields["status"] == "waiting"
    assert fields["optimizer"] == "AdamW(weight_decay=0.1)"
    assert fields["schedule"] == "Cosine(total_steps=100)"
    assert fields["clip"] == "ClipNorm(max_norm=1.0)"
    assert fields["sync"] == "Sync(workers=2)"
    assert fields["parameters"] == "650 in 2 tensors"
    assert re.search(r"^ *0  alice  .*  \d+\.\d of 10 s  -  ", shown.stdout, re.MULTILINE), shown.stdout
    assert fields["problem"] == "waits for 1 more worker, has 1: nobody has joined with rank 1"
    assert re.search(r"^ *1  -  +-  +nobody has joined with this rank$", shown.stdout, re.MULTILINE), shown.stdout


def test_status_of_a_run_as_json(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    document = json.loads(call("status", "letters", "--json", "--target", fleet.target).stdout)
    assert document["status"] == "waiting"
    assert document["lr"] == [0.001, 0.5]
    assert document["optimizer"]["type"] == "AdamW"
    assert document["sync"]["workers"] == 2
    assert document["elements"] == 650
    assert [(worker["id"], worker["rank"]) for worker in document["workers"]] == [("alice", 0)]
    assert document["missing"] == [{"rank": 1, "id": None, "since": None, "why": None}]


def test_the_target_may_come_from_the_environment(fleet: stepd.LocalFleet, vacant: str) -> None:
    assert call("runs", STEPD_TARGET=fleet.target).returncode == 0
    assert call("runs", "--target", fleet.target, STEPD_TARGET=vacant).returncode == 0


def test_on_a_terminal_tables_are_drawn(fleet: stepd.LocalFleet, run: stepd.Run) -> None:
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [*STEPD, "runs", "--target", fleet.target],
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    while select.select([main], [], [], PATIENCE_S)[0]:
        try:
            shown += os.read(main, 4096)
        except OSError:  # the other side has closed
            break
    os.close(main)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "letters" in shown.decode()
    assert "\x1b[" in shown.decode()


# --- Serving ----------------------------------------------------------------------------------------------------


def test_serve_is_one_process_with_the_server_and_ends_with_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*STEPD, "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data"), "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        target = json.loads(process.stdout.readline())["target"]
        assert "stepd_server" in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert call("status", "--target", target).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE_S) in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        time.sleep(0.2)
        assert call("status", "--target", target).returncode == 1
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
