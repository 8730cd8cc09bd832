"""The worker processes of a demo on this machine: started together, watched, and all ended at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from typing import IO, TYPE_CHECKING, Any, Final, Self

from stepd.errors import StepdError

if TYPE_CHECKING:
    from types import TracebackType

# Time to leave the run before a worker is killed.
LEAVE_S: Final = 3.0
# What is read of a failed worker's last words.
ERROR_BYTES: Final = 4096


class Crew:
    """A context manager; when it is left, whatever the reason, no worker is left running."""

    def __init__(self, target: str, *, run: str, workers: int, steps: int) -> None:
        self._target, self._run, self._workers, self._steps = target, run, workers, steps
        self._processes: list[subprocess.Popen[bytes]] = []
        self._outputs: list[IO[bytes]] = []
        self._errors: list[IO[bytes]] = []
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            for rank in range(self._workers):
                self._start(rank)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def done(self) -> bool:
        """Every worker has ended without an error."""
        return all(process.poll() == 0 for process in self._processes)

    def check(self) -> None:
        """Raise StepdError, reason WORKER_FAILED, if one has ended with an error."""
        for rank, (process, errors) in enumerate(zip(self._processes, self._errors, strict=True)):
            code = process.poll()
            if code:
                said = self._last_words(errors)
                message = f"worker {rank} ended with exit code {code}" + (f": {said}" if said else "")
                raise StepdError(message, reason="WORKER_FAILED", rank=rank, exit_code=code)

    def wait(self, seconds: float) -> None:
        """Wait until all have ended; raise as `check` does if one failed, or is still there after so long."""
        end = time.monotonic() + seconds
        while not self.done:
            self.check()
            if time.monotonic() > end:
                late = [rank for rank, process in enumerate(self._processes) if process.poll() is None]
                raise StepdError(
                    f"worker {late[0]} has not ended {seconds:.0f} s after the last step",
                    reason="WORKER_FAILED",
                    rank=late[0],
                )
            time.sleep(0.02)

    def losses(self) -> dict[int, float]:
        """By step: the mean of the workers' losses. For when they have ended; every step is there, unlike in events."""
        found: dict[int, list[float]] = {}
        for output in self._outputs:
            output.seek(0)
            for line in output:
                # The accuracy stands among them, and a worker that was killed may have left half a line.
                step, _, loss = line.strip().partition(b" ")
                if step.isdigit():
                    with contextlib.suppress(ValueError):
                        found.setdefault(int(step), []).append(float(loss))
        return {step: sum(losses) / len(losses) for step, losses in sorted(found.items())}

    def _start(self, rank: int) -> None:
        output, errors = (self._files.enter_context(tempfile.TemporaryFile()) for _ in range(2))  # noqa: SIM115 - the stack closes them
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "stepd.demo.worker", "--lifeline", "--trace"),
                *("--target", self._target, "--run", self._run, "--rank", str(rank)),
                *("--workers", str(self._workers), "--steps", str(self._steps)),
            ],
            # Its end of the pipe closes when this process dies in whatever way, and the worker ends too.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            # Matrices this small gain nothing from threads, and spinning ones take the servers' time.
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            # Ctrl-C in the terminal is for the command, which then ends its workers in order.
            start_new_session=True,
        )
        self._processes.append(process)
        self._outputs.append(output)
        self._errors.append(errors)

    def _end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + LEAVE_S
        for process in self._processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin:
                process.stdin.close()
        self._files.close()

    @staticmethod
    def _last_words(errors: IO[Any]) -> str:
        size = errors.seek(0, os.SEEK_END)
        errors.seek(max(0, size - ERROR_BYTES))
        lines = errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
