"""A run: all systems with so many workers, in turns of short blocks, so that all see the machine in the same state."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.compare.sides import Sides
from bench.compare.system import System
from bench.compare.workload import Files

WARM_UP = 4


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
    """How much is measured: `turns` of blocks of so many steps; a third of the steps for systems that are slow."""

    turns: int
    block: int

    def block_of(self, system: System) -> int:
        return max(1, self.block // 3) if system.slow else self.block

    def steps_of(self, system: System) -> int:
        """With those that warm up."""
        return WARM_UP // (2 if system.slow else 1) + self.turns * self.block_of(system)


def measure(
    systems: Sequence[System], workers: int, files: Files, length: Length, say: Callable[[str], None], *, check: bool
) -> list[Result]:
    """Start all, have them do their steps in turns, check their numbers."""
    sides = []
    try:
        for system in systems:
            say(f"W{workers}: {system.key} starts")
            one = Sides(system, workers, files)
            sides.append(one)
            one.join()
            one.begin()
            one.block(WARM_UP // (2 if system.slow else 1), count=False)
        for turn in range(length.turns):
            say(f"W{workers}: turn {turn + 1} of {length.turns}")
            for one in sides if turn % 2 == 0 else reversed(sides):
                one.block(length.block_of(one.system))
        return [_result(one, check=check) for one in sides]
    finally:
        for one in sides:
            one.end()


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
