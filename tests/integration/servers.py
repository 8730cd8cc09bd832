"""Server processes for tests: started, listened to, and never left behind."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.patience import PATIENCE_S


class Server:
    """`python -m stepd_server ...` as a process.

    Attributes:
        pid: its process id.
        out: lines of its standard output, as they come.
    """

    def __init__(self, *argv: str, environ: dict[str, str] | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPD_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stepd_server", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, "STEPD_LOG": "warning", **(environ or {})},
            process_group=0,
        )
        self.pid = self._process.pid
        self.out: queue.Queue[str] = queue.Queue()
        self._err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self.out.put)),
            threading.Thread(target=self._read, args=(self._process.stderr, self._err.append)),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, take: Callable[[str], object]) -> None:
        for line in stream:
            take(line.rstrip("\n"))
        stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self.wait()
        if error is not None:
            error.add_note("\n".join(["standard error:", *self._err]))

    def line(self) -> str:
        """The next line of its output."""
        return self.out.get(timeout=PATIENCE_S)

    def event(self, **wanted: object) -> dict[str, Any]:
        """The next JSON event that has these values; earlier ones are dropped."""
        while True:
            event: dict[str, Any] = json.loads(self.line())
            if wanted.items() <= event.items():
                return event

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> int:
        """Wait for its end. Returns the exit code."""
        code = self._process.wait(PATIENCE_S)
        for reader in self._readers:
            reader.join(PATIENCE_S)
        self.close_stdin()
        return code

    def ended(self) -> tuple[int, list[str]]:
        """Wait for its end. Returns the exit code and the lines of its standard error."""
        return self.wait(), self._err


def eventually(holds: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended but was not asked for its code does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
