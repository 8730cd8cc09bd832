"""What the death of a shard costs, and what it costs to be prepared for it.

    python bench/recovery.py [--megabytes 100 1000] [--kills 5] [--steps 40] [--transport auto]

For each size of the state (parameters and the two moments of AdamW, on one shard, one worker):

recovery:  seconds from `kill -9` of the shard, in the middle of a step, to the next step that the worker has; the
           supervisor of `stepd serve` starts the shard again;
journal:   how long a step takes with the decision's file, the undo slot and the journal of units, as a ratio of one
           without them: two runs on one shard, whose steps alternate. The shard that can do without is made here, for
           this measurement; no server has such a switch. Without it a kernel takes a whole turn in one call.

The bar: a step takes at most 1.10 of one without.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import stepd
from stepd.memory import tune_malloc
from stepd_server.cli import main as serve
from stepd_server.shard.finishing import Finishing, Turn
from stepd_server.shard.plan import Span
from stepd_server.shard.sweeping import Swept

BAR = 1.10
WARM_UP = 3
# Parameter and two moments, of four bytes each.
BYTES_A_PARAMETER = 12
# No process starts as quickly: what the worker has by then, the dead shard had already sent.
AT_LEAST_S = 0.1
WITH, WITHOUT = "with", "without"
AS_SHARD = "--as-shard"


def create(client: stepd.Client, name: str, megabytes: int) -> tuple[stepd.Run, dict[str, np.ndarray]]:
    """A run with so large a state, and a gradient for it."""
    rows = megabytes * 1_000_000 // BYTES_A_PARAMETER // 1000
    params = {"w": np.zeros((rows, 1000), np.float32)}
    run = client.create_run(name, params, optimizer=stepd.AdamW(lr=1e-3), clip=stepd.ClipNorm(1.0))
    params["w"][...] = np.random.default_rng(0).standard_normal((rows, 1000), np.float32)
    return run, params


def timed_step(worker: stepd.Worker, gradient: dict[str, np.ndarray]) -> float:
    begin = time.perf_counter()
    worker.step(gradient)
    return time.perf_counter() - begin


# --- Recovery ---------------------------------------------------------------------------------------------------------


def recovery(megabytes: int, kills: int, transport: str) -> tuple[float, list[float]]:
    """Seconds of a step, and from each kill to the end of the step in which it fell."""
    with stepd.local(shards=1) as fleet, stepd.connect(fleet.target, transport=transport, retry_for=120.0) as client:
        run, gradient = create(client, "recovery", megabytes)
        with run.join(lease=120.0) as worker:
            usual = statistics.median([timed_step(worker, gradient) for _ in range(WARM_UP + 5)][WARM_UP:])
            found = []
            for _ in range(kills):
                struck: list[float] = []

                def strike(pid: int = client.fleet().shards[0].pid, struck: list[float] = struck) -> None:
                    struck.append(time.perf_counter())
                    os.kill(pid, signal.SIGKILL)

                killer = threading.Timer(usual * random.uniform(0.1, 0.8), strike)
                killer.start()
                before = run.step_count
                over = 0.0
                while not struck or over - struck[0] < AT_LEAST_S:
                    result = worker.step(gradient)
                    over = time.perf_counter()
                killer.join()
                assert result.step > before
                found.append(over - struck[0])
                for _ in range(2):
                    worker.step(gradient)
            return usual, found


# --- The journal's cost -----------------------------------------------------------------------------------------------


def together(spans: Iterable[Span]) -> list[Span]:
    """Those that a kernel takes in one call if nothing has to be kept between them."""
    found: list[Span] = []
    for span in spans:
        if found and found[-1].slice == span.slice and found[-1].stop == span.start:
            found[-1] = replace(found[-1], stop=span.stop)
        else:
            found.append(span)
    return found


def shard_that_can_do_without() -> int:
    """A shard whose run "without" changes its arrays and writes nothing down."""
    begin, carry_out, run = Finishing.begin, Finishing.carry_out, Finishing.run

    def begin_maybe(self: Finishing) -> None:
        if self._arena.piece.spec.name == WITHOUT:
            self._arena.remembering.write = lambda _: None  # type: ignore[method-assign]
        begin(self)

    def update(self: Finishing, turn: Turn | Swept) -> None:
        assert self._step is not None
        spans = [span for unit in turn.units for span in unit.spans]
        with np.errstate(all="ignore"):
            self._step.update(together(spans) if self._step.compiles else spans)

    def carry_out_maybe(self: Finishing, turn: Turn) -> None:
        (update if self._arena.piece.spec.name == WITHOUT else carry_out)(self, turn)

    def run_maybe(self: Finishing, turn: Swept, *how: Any) -> None:
        if self._arena.piece.spec.name == WITHOUT:
            update(self, turn)
        else:
            run(self, turn, *how)

    Finishing.begin = begin_maybe  # type: ignore[method-assign]
    Finishing.carry_out = carry_out_maybe  # type: ignore[method-assign]
    Finishing.run = run_maybe  # type: ignore[method-assign]
    sys.argv = ["stepd", *sys.argv[2:]]
    return serve()


@contextmanager
def role(*command: str, folder: str) -> Iterator[str]:
    """A server as a process; where it listens."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, *command, "--listen=127.0.0.1:0", f"--data-dir={folder}", "--json", "--lifeline"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            told = (event["target"] for line in process.stdout if (event := json.loads(line))["event"] == "listening")
            target = next(told, None)
            if target is None:
                log.seek(0)
                sys.exit(log.read())
            yield target
        finally:
            process.terminate()
            process.communicate()


def journal(megabytes: int, steps: int, transport: str) -> tuple[float, float]:
    """Seconds of a step with and without, medians."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with (
        tempfile.TemporaryDirectory(dir=memory) as folder,
        role("-m", "stepd_server", "coordinator", "--shards=1", folder=folder) as target,
        role(__file__, AS_SHARD, "shard", "--index=0", f"--coordinator={target}", folder=folder),
        stepd.connect(target, transport=transport, retry_for=60.0) as client,
    ):
        run, gradient = create(client, WITH, megabytes)
        other, _ = create(client, WITHOUT, megabytes)
        with run.join(lease=120.0) as worker, other.join(lease=120.0) as bare:
            times = [(timed_step(worker, gradient), timed_step(bare, gradient)) for _ in range(WARM_UP + steps)]
    with_it, without = zip(*times[WARM_UP:], strict=True)
    return statistics.median(with_it), statistics.median(without)


def free_megabytes() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 1000], help="of state on the shard")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of each kind, for the journal's cost")
    parser.add_argument("--transport", choices=["auto", "grpc", "shm"], default="auto")
    options = parser.parse_args()
    tune_malloc()
    print(f"cores: {len(os.sched_getaffinity(0))}; seconds; median, and least to most")
    for megabytes in options.megabytes:
        # Two runs, their sums, the worker's gradient and what it reads.
        needed = megabytes * 4
        if free_megabytes() < needed:
            print(
                f"{megabytes:6} MB: not measured, as it needs {needed} MB of memory and {free_megabytes():.0f} are free"
            )
            continue
        usual, times = recovery(megabytes, options.kills, options.transport)
        print(
            f"{megabytes:6} MB: a step {usual:.3f}; from the kill to the next step {statistics.median(times):.2f}"
            f" ({min(times):.2f} to {max(times):.2f}, {len(times)} kills)",
            flush=True,
        )
        with_it, without = journal(megabytes, options.steps, options.transport)
        ratio = with_it / without
        print(
            f"{megabytes:6} MB: a step {with_it:.4f} with the journal, {without:.4f} without: {ratio:.3f}"
            f" (bar {BAR:.2f}: {'held' if ratio <= BAR else 'MISSED'}; medians of {options.steps})",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(shard_that_can_do_without() if sys.argv[1:2] == [AS_SHARD] else main())
