"""Processes of measurements: started by `spawn`, each at the other end of a pipe, ended by their handle."""

from __future__ import annotations

import importlib
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Final, Self

SPAWN: Final = multiprocessing.get_context("spawn")
WARM_UP: Final = 3


class Process:
    """A program `(pipe, *args)` in a process of its own, for as long as a `with` block lasts."""

    def __init__(self, program: Callable[..., None], *args: Any) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self._process: SpawnProcess = SPAWN.Process(target=program, args=(theirs, *args))
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def receive(self) -> Any:
        """What it sends next; EOFError if it has ended."""
        return self.pipe.recv()

    def end(self, patience_s: float = 0.0) -> None:
        """End it; its pipe closes first, and a program that waits for that may take so long to end by itself."""
        self.pipe.close()
        self._process.join(patience_s)
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()


class Servers:
    """So many processes of one server program, which sends where it listens."""

    def __init__(self, program: Callable[..., None], count: int, *args: Any) -> None:
        self._processes = [Process(program, *args) for _ in range(count)]

    def __enter__(self) -> list[str]:
        return [process.receive() for process in self._processes]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._processes:
            process.end()


def run_workers(program: Callable[..., None], workers: int, *args: Any) -> float:
    """Median over all steps of all workers; a worker gets its rank first, and sends its times."""
    processes = [Process(program, rank, *args) for rank in range(workers)]
    times: list[float] = [seconds for process in processes for seconds in process.receive()]
    for process in processes:
        process.end(patience_s=10.0)
    return statistics.median(times)


def time_steps(steps: int, step: Callable[[], object], warm_up: int = WARM_UP) -> list[float]:
    """Seconds of each step after some that do not count."""
    times = []
    for _ in range(steps + warm_up):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return times[warm_up:]


def by_name(pipe: Connection, module: str, program: str, *args: Any) -> None:
    """A program whose module only its own process is to import."""
    getattr(importlib.import_module(module), program)(pipe, *args)


def until_closed(pipe: Connection) -> None:
    """Wait until the other end of a pipe is closed."""
    try:
        while True:
            pipe.recv()
    except EOFError:
        return
