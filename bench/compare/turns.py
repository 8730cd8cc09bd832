"""A run: all systems with so many workers, in turns of short blocks, so that all see the machine in the same state."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.compare.sides import Sides
from bench.compare.system import System
from bench.compare.workload import Files

# Of one system: parameters, moments, sums and what carries them; and what a worker has, besides gradients.
SERVER_BYTES, WORKER_BYTES = 0.8e9, 0.4e9


@dataclass(frozen=True)
class Result:
    """Of one system with so many workers.

    Attributes:
        seconds: of a step, the median.
        processor_s: of all its processes, for each step.
        peak_bytes: of the process that holds the parameters; None without one.
        deviation: of the parameters (workload.deviation); None if there are none.
    """

    key: str
    workers: int
    steps: int
    seconds: float
    processor_s: float
    peak_bytes: int | None
    deviation: float | None


@dataclass(frozen=True)
class Length:
    """How much is measured.

    Attributes:
        turns: how often each system has its turn.
        block: steps of a turn; a third of them for systems that are slow.
        warm_up: steps before the first, which do not count.
    """

    turns: int
    block: int
    warm_up: int

    def block_of(self, system: System) -> int:
        return max(1, self.block // 3) if system.slow else self.block

    def warm_up_of(self, system: System) -> int:
        return max(1, self.warm_up // 3) if system.slow else self.warm_up

    def steps_of(self, system: System) -> int:
        """With those that warm up."""
        return self.warm_up_of(system) + self.turns * self.block_of(system)


def groups_of(systems: Sequence[System], workers: int, memory: float) -> list[list[System]]:
    """Systems that are there at once: all of them, or as many at a time as so much memory is enough for."""
    most = max(1, int(memory / (SERVER_BYTES + workers * WORKER_BYTES)))
    count = -(-len(systems) // most)
    return [list(systems[i::count]) for i in range(count)]


def measure(
    systems: Sequence[System], workers: int, files: Files, length: Length, say: Callable[[str], None], *, check: bool
) -> list[Result]:
    """Start all, have them do their steps in turns, check their numbers."""
    say(f"{workers} workers: {', '.join(system.key for system in systems)}")
    started = [Sides(system, workers, files) for system in systems]
    sides = started
    try:
        for begin in (Sides.join, Sides.begin, lambda one: one.block(length.warm_up_of(one.system), count=False)):
            sides = [one for one in sides if _succeeds(one, begin, say)]
        for turn in range(length.turns):
            say(f"turn {turn + 1} of {length.turns}")
            for one in sides if turn % 2 == 0 else reversed(sides):
                one.block(length.block_of(one.system))
        return [_result(one, check=check) for one in sides]
    finally:
        for one in started:
            one.end()


def _succeeds(one: Sides, begin: Callable[[Sides], None], say: Callable[[str], None]) -> bool:
    """Whether a system has taken a step of its start; one that cannot be had here is left out."""
    try:
        begin(one)
    except EOFError:
        say(f"{one.system.key} with {one.workers} workers is left out: a process of it has ended")
        return False
    return True


def _result(sides: Sides, *, check: bool) -> Result:
    system = sides.system
    return Result(
        key=system.key,
        workers=sides.workers,
        steps=len(sides.times) // sides.workers,
        seconds=statistics.median(sides.times),
        processor_s=sides.processor_s,
        peak_bytes=sides.peak_bytes() if system.server else None,
        deviation=sides.deviation() if check and system.tolerance is not None else None,
    )
