"""Worker processes of a test, and what they have told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import PATIENCE_S

TRAINEE = Path(__file__).with_name("trainee.py")

Event = dict[str, Any]


class Trainee:
    """One worker process.

    Attributes:
        config: what it was started with.
        events: what it has told, in order.
        ended: its exit code; None while it runs.
    """

    def __init__(self, changed: threading.Condition, config: dict[str, Any]) -> None:
        self.config = config
        self.rank: int = config["rank"]
        self.events: list[Event] = []
        self.ended: int | None = None
        self._changed = changed
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "error", str(TRAINEE), json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("STEPD_")},
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # or it was killed while it wrote
                with self._changed:
                    self.events.append(json.loads(line))
                    self._changed.notify_all()
        errors = self._process.stderr.read()
        code = self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()
        with self._changed:
            if errors:
                self.events.append({"event": "stderr", "message": errors})
            self.ended = code
            self._changed.notify_all()

    def all(self, event: str) -> list[Event]:
        return [told for told in self.events if told["event"] == event]

    @property
    def steps(self) -> list[Event]:
        return self.all("step")

    @property
    def step(self) -> int:
        """The last that it saw."""
        steps = self.steps
        return steps[-1]["step"] if steps else 0

    @property
    def trouble(self) -> str:
        return "; ".join(f"{told.get('reason', '')} {told['message']}" for told in self.events if "message" in told)

    def signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self._reader.join(PATIENCE_S)


class Trainees:
    """The workers of a run; a context manager that leaves none behind."""

    def __init__(self, folder: Path, target: str, run: str, **config: Any) -> None:
        """
        Args:
            folder: for the file that ends them.
            target: of the fleet.
            run: its name.
            config: of all workers; see trainee.py. Unless it says otherwise gradients and parameters are sent, and
                not shared: what a test does to links concerns them.
        """
        self.run = run
        self.workers: list[Trainee] = []
        self._changed = threading.Condition()
        self._until = folder / f"{run}.until"
        self._config = {"target": target, "run": run, "until": str(self._until), "transport": "grpc", **config}

    def start(self, *ranks: int, **config: Any) -> list[Trainee]:
        new = [Trainee(self._changed, {**self._config, **config, "rank": rank}) for rank in ranks]
        self.workers += new
        return new

    def replace(self, worker: Trainee) -> Trainee:
        """Start another for one that is dead."""
        self.workers[self.workers.index(worker)] = new = Trainee(self._changed, worker.config)
        return new

    def wait(self, holds: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait until something holds that the workers tell; fail at once if one of them ends in an error."""

        def over() -> bool:
            return bool(holds()) or any(worker.ended in {1, 3} for worker in self.workers)

        deadline, done = time.monotonic() + within_s, False
        while not (done := over()) and time.monotonic() < deadline:
            with self._changed:
                self._changed.wait(0.05)  # what is waited for need not be told by a worker
        told = [f"rank {w.rank}: step {w.step}, ended {w.ended} {w.trouble}" for w in self.workers]
        assert done, f"not within {within_s} s: {what}; {told}"
        assert holds(), f"a worker failed while waiting: {what}; {told}"

    def await_steps(self, more: int = 1, *, of: list[Trainee] | None = None, within_s: float = PATIENCE_S) -> None:
        """Every worker sees so many further steps."""
        of = self.workers if of is None else of
        before = [(worker, worker.step) for worker in of]
        self.wait(lambda: all(w.step >= at + more for w, at in before), f"{more} more steps", within_s)

    def finish(self, steps: int | None = None) -> int:
        """Have all end after the same step, which is given; by default one soon."""
        if steps is None:
            steps = max((worker.step for worker in self.workers), default=0) + 20
        self._until.with_suffix(".new").write_text(str(steps))
        self._until.with_suffix(".new").rename(self._until)
        self.wait(lambda: all(worker.ended is not None for worker in self.workers), f"all end after step {steps}")
        return steps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self.workers:
            worker.end()


def counted(told: list[Event], before: float | None = None) -> dict[int, list[int]]:
    """By step: who was counted in it, by rank and as often as it was, from results of "digit" gradients and sums.

    Args:
        told: results of one worker.
        before: the parameter's value before the first; by default that is not known, and the second is the first found.
    """
    found: dict[int, list[int]] = {}
    if before is None and told:
        before, told = told[0]["first"], told[1:]
    for result in told:
        assert before is not None
        grown, ranks = round(result["first"] - before), []
        for rank in range(6):
            ranks += [rank] * (grown % 16)
            grown //= 16
        found[result["step"]] = ranks
        before = result["first"]
    return found


def without_a_lost_one(lease: float, before: list[Event]) -> float:
    """Seconds after which the others have gone on without one that is lost: its lease and one second.

    On a busy machine, which their steps from before tell, it may be more: that the lease is over has to be noticed, a
    new attempt is gathered from everybody, decided and applied, and nothing of it is quicker than a step was.
    """
    slowest = max((after["at"] - before["at"] for before, after in pairwise(before)), default=0.0)
    return lease + 1.0 + 4 * slowest


def check_order(told: list[Event]) -> None:
    """Every result was seen once and in order."""
    steps = [result["step"] for result in told]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
