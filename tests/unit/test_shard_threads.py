"""What is added on several cores: an attempt that takes the place of another waits until threads have let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.errors import Aborted
from stepd_server.kernels import updates
from stepd_server.kernels.arriving import known_loops
from stepd_server.kernels.compiled import available
from stepd_server.shard import pushing
from stepd_server.shard.threads import THREADS, at_once

from .shard_bench import Fleet, arrays, norm, run

pytestmark = pytest.mark.skipif(not available(), reason="llvmlite (stepd[fast]) is not installed")


class Threads:
    """Calls in threads, which begin when they may."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.may = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(updates, "_ELEMENTS_MIN", 0)
        monkeypatch.setattr(pushing, "_ELEMENTS_AT_ONCE", 0)
        monkeypatch.setattr(pushing, "at_once", self._at_once)
        known_loops(np.dtype(np.float32)).wait()

    async def _at_once(self, calls: Sequence[Callable[[], Any]]) -> list[Any]:
        self.asked.set()
        await self.may.wait()
        return await at_once(calls)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("cancelled", [False, True], ids=["there", "gone"])
def test_another_attempt_waits_for_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cancelled: bool) -> None:
    """Whether or not the sender is there still; what they have added is no part of it."""

    async def scenario() -> None:
        threads = Threads(monkeypatch)
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        (shard,) = fleet.shards
        first = asyncio.create_task(fleet.gather((0,), 0, 0))
        await turns()
        push = asyncio.create_task(fleet.push(arrays(1), 0, 0, 0, chunk=1000))
        await threads.asked.wait()
        if cancelled:
            push.cancel()
        second = asyncio.create_task(fleet.gather((0,), 0, 1))
        await turns()
        assert shard._gathering is not None
        assert shard._gathering.id == (0, 0)
        threads.may.set()
        with pytest.raises(asyncio.CancelledError if cancelled else Aborted):
            await push
        with pytest.raises(Aborted):
            await first
        await fleet.push(arrays(2), 0, 0, 1, chunk=1000)
        flat, _ = fleet.flat(0, arrays(2))
        assert norm(await second) == pytest.approx(float(np.linalg.norm(flat.astype(np.float64))))
        np.testing.assert_array_equal(shard.arena.accumulator, flat)

    run(scenario)


def test_contributions_are_added_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several workers, by threads: the sum is that of all."""

    async def scenario() -> None:
        threads = Threads(monkeypatch)
        threads.may.set()
        fleet, plain = Fleet(tmp_path / "a", arrays(0)), Fleet(tmp_path / "b", arrays(0))
        await fleet.start()
        grads = [arrays(seed) for seed in range(3)]
        sums = await fleet.step(*grads, deterministic=True)
        assert threads.asked.is_set()
        monkeypatch.setattr(pushing, "_ELEMENTS_AT_ONCE", 1 << 30)
        await plain.start()
        assert await plain.step(*grads, deterministic=True) == sums
        np.testing.assert_array_equal(fleet.shards[0].arena.parameters, plain.shards[0].arena.parameters)

    run(scenario)


def test_as_many_threads_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(THREADS, "_count", 3)
    assert THREADS.count == 3
    monkeypatch.setattr(THREADS, "_count", 1000)
    assert THREADS.count == 16
