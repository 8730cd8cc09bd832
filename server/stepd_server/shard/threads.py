"""The cores of this machine that a shard computes on.

Only compiled calls that take a millisecond go to threads: they hold no interpreter lock. What is small is done in the
event loop at once, for a thread takes a tenth of a millisecond to begin.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

from stepd.limits import COMPUTE_THREADS_MAX
from stepd_server.shard.finishing import Finishing, Sweep

# Fewer elements are done in the event loop: below a millisecond.
_ELEMENTS_MIN: Final = 1 << 18

T = TypeVar("T")


class Threads:
    """The threads of this process, shared by all runs."""

    def __init__(self) -> None:
        self._count: int | None = None
        self._pool: ThreadPoolExecutor | None = None

    def use(self, count: int | None) -> None:
        """Compute with so many, once for all; None: with as many as there are cores."""
        self._count = count

    @property
    def count(self) -> int:
        """How many compute at once."""
        return max(1, min(self._count or len(os.sched_getaffinity(0)), COMPUTE_THREADS_MAX))

    @property
    def pool(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="compute")
        return self._pool


THREADS: Final = Threads()


async def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls in threads, all at once; give their results when all have ended, or raise what one has raised."""
    loop = asyncio.get_running_loop()
    running = [loop.run_in_executor(THREADS.pool, call) for call in calls]
    await asyncio.wait(running)
    return [call.result() for call in running]


async def sweep(finishing: Finishing, sweep: Sweep, on_final: Callable[[int], None]) -> None:
    """Carry a sweep out, on every core if it is large.

    Args:
        finishing: whose.
        sweep: what is left of it.
        on_final: told, in the event loop, up to which element parameters are final.
    """
    if sweep.elements < _ELEMENTS_MIN or any(finishing.calls(turn) is None for turn in sweep.turns[:1]):
        for turn, final in zip(sweep.turns, sweep.finals, strict=True):
            finishing.carry_out_swept(turn)
            on_final(final)
            await asyncio.sleep(0)
    else:
        await _Sweeping(finishing, sweep, on_final).carry_out()
    finishing.swept(sweep)


class _Sweeping:
    """One sweep by several threads, each of which takes the next turn when it is done with one."""

    def __init__(self, finishing: Finishing, sweep: Sweep, on_final: Callable[[int], None]) -> None:
        self._finishing = finishing
        self._sweep = sweep
        self._on_final = on_final
        self._left = deque(range(len(sweep.turns)))
        # Turns that have to be done without kernels, when nothing else is under way.
        self._plain: list[int] = []
        self._done = [False] * len(sweep.turns)
        self._final = 0
        self._loop = asyncio.get_running_loop()

    async def carry_out(self) -> None:
        count = min(THREADS.count, self._finishing.slots, len(self._sweep.turns))
        await at_once([partial(self._work, slot) for slot in range(count)])
        for number in sorted(self._plain):
            self._finishing.carry_out_swept(self._sweep.turns[number])
            self._is_done(number)
            await asyncio.sleep(0)

    def _work(self, slot: int) -> None:
        """In a thread."""
        while True:
            try:
                number = self._left.popleft()
            except IndexError:
                return
            turn = self._sweep.turns[number]
            calls = self._finishing.calls(turn, slot)
            if calls is None:
                self._plain.append(number)
                continue
            self._finishing.run(turn, calls, slot)
            self._loop.call_soon_threadsafe(self._is_done, number)

    def _is_done(self, number: int) -> None:
        self._done[number] = True
        if number == self._final:
            while self._final < len(self._done) and self._done[self._final]:
                self._final += 1
            self._on_final(self._sweep.finals[self._final - 1])
