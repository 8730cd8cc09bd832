"""The processes of one system: a host and workers, which do blocks of steps when they are told to."""

from __future__ import annotations

import importlib
import os
import signal
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from bench.compare.system import Module, Start, System
from bench.compare.workload import IN_TURNS, Files, deviation
from bench.processes import SPAWN, Process, until_closed
from bench.usage import peak_bytes, processor_s, with_descendants

END_S: Final = 20.0


class Block(NamedTuple):
    """Orders a worker to do so many steps."""

    steps: int


class Check(NamedTuple):
    """Orders a worker to compare its parameters."""

    expected: Path


@dataclass(frozen=True)
class Done:
    """A worker's answer to a block: seconds of each step, and of processor time that preparing took."""

    times: list[float]
    prepared_s: float


def _module(system: System) -> Module:
    # Torch tells of peers that end, which they do.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    warnings.simplefilter("ignore")
    return cast("Module", importlib.import_module(f"bench.compare.systems.{system.module}"))


def host_main(pipe: Connection, system: System, workers: int, files: Files) -> None:
    def ready(address: Any, pids: list[int]) -> None:
        pipe.send((address, pids))

    _module(system).host(Start(workers, -1, system.options, files, ready, lambda: until_closed(pipe)))


def worker_main(
    pipe: Connection, system: System, workers: int, rank: int, files: Files, address: Any, together: Any
) -> None:
    start = Start(workers, rank, system.options, files, lambda _address, _pids: None, lambda: None)
    gradients, done = files.gradients(rank), 0
    with _module(system).join(start, address) as worker:
        pipe.send(None)
        while True:
            try:
                order = pipe.recv()
            except EOFError:
                return
            if isinstance(order, Check):
                pipe.send(deviation(worker.parameters, order.expected, done))
                continue
            times, prepared_s = [], 0.0
            for _ in range(order.steps):
                gradient = gradients[done % IN_TURNS]
                begin = time.process_time()
                worker.prepare(gradient)
                prepared_s += time.process_time() - begin
                together.wait()
                began = time.perf_counter()
                worker.step(gradient)
                times.append(time.perf_counter() - began)
                done += 1
            pipe.send(Done(times, prepared_s))


class Sides:
    """One system with so many workers, running.

    Attributes:
        times: of all steps of all workers that count.
        steps: done, warm-up included.
    """

    def __init__(self, system: System, workers: int, files: Files) -> None:
        self.system = system
        self.workers = workers
        self.times: list[float] = []
        self.steps = 0
        self._counted = 0
        self._used_s = 0.0
        self._host = Process(host_main, system, workers, files)
        self._files = files
        # Held here: it is gone from the system with the last of its owners.
        self._together = SPAWN.Barrier(workers)
        self._workers: list[Process] = []
        self._pids: list[int] = []

    def join(self) -> None:
        """Start the workers."""
        address, self._pids = self._host.receive()
        self._workers = [
            Process(worker_main, self.system, self.workers, rank, self._files, address, self._together)
            for rank in range(self.workers)
        ]

    def begin(self) -> None:
        """Wait until all have joined."""
        for worker in self._workers:
            worker.receive()

    def block(self, steps: int, *, count: bool = True) -> None:
        """Do so many steps."""
        with self._turn() as pids:
            before = processor_s(pids)
            for worker in self._workers:
                worker.pipe.send(Block(steps))
            answers: list[Done] = [worker.receive() for worker in self._workers]
            used_s = processor_s(pids) - before
        self.steps += steps
        if count:
            prepared_s = sum(answer.prepared_s for answer in answers)
            self._used_s += used_s - prepared_s
            self._counted += steps
            self.times += [seconds for answer in answers for seconds in answer.times]

    @property
    def processor_s(self) -> float:
        """Of all processes, for each step that counts, without what prepared gradients."""
        return self._used_s / self._counted

    def peak_bytes(self) -> int:
        return peak_bytes(self._pids)

    def deviation(self) -> float:
        with self._turn():
            for worker in self._workers:
                worker.pipe.send(Check(self._files.expected(self.workers, self.steps)))
            found: list[float] = [worker.receive() for worker in self._workers]
        return max(found)

    @contextmanager
    def _turn(self) -> Iterator[set[int]]:
        """Its processes; they stand still from its end to the next one's begin if they would not leave others alone."""
        pids = with_descendants([self._host.pid, *(worker.pid for worker in self._workers)])
        self._signal(pids, signal.SIGCONT)
        try:
            yield pids
        finally:
            self._signal(pids, signal.SIGSTOP)

    def _signal(self, pids: Iterable[int], number: signal.Signals) -> None:
        for pid in pids if self.system.spins else ():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        self._signal(with_descendants([process.pid for process in (*self._workers, self._host)]), signal.SIGCONT)
        for process in (*self._workers, self._host):
            process.end(END_S)
