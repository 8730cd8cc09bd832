"""A shard that dies within a compiled update finishes it, with a compiler or without one."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.rules import LAMB, SGD, AdamW, NAdam, RMSprop, Rule
from stepd.rules.base import Array
from stepd_server.kernels import updates
from stepd_server.kernels.compiled import Kernel, Words, available, compiled
from stepd_server.kernels.trace import Recorder
from stepd_server.shard import applying, sweeping
from stepd_server.shard import run as running
from stepd_server.shard.finishing import Finishing, Sweep
from stepd_server.shard.sweeping import slot_size, standing

from .kills import Kills
from .shard_bench import Fleet, run
from .test_shard_kills import fitting, folder, watch

pytestmark = pytest.mark.skipif(not available(), reason="llvmlite (stepd[fast]) is not installed")
__all__ = ["folder"]

RULES = [SGD(0.1, momentum=0.9), AdamW(0.1), NAdam(0.1), RMSprop(0.1, momentum=0.9, centered=True), LAMB(0.1)]


class Dying:
    """`Kernel.sweep` with deaths in it: what it does, told step by step."""

    def __init__(self, kills: Kills, monkeypatch: pytest.MonkeyPatch, *, keeps: bool = True) -> None:
        self.calls = 0
        self._kills = kills
        self._keeps = keeps

        def sweep(kernel: Kernel, rows: Words, part: int, word: Words, slot: Array) -> None:
            for _ in self.steps(kernel, rows, part, word, slot):
                pass

        monkeypatch.setattr(Kernel, "sweep", sweep)

    def steps(self, kernel: Kernel, rows: Words, size: int, word: Words, slot: Array) -> Iterator[None]:
        """Between any two of them others may do theirs."""
        kills = self._kills
        for first, count, constants, *addresses in rows.tolist():
            self.calls += 1
            cells = [array_at(address, count) for address in addresses]
            kept = [cells[0], *cells[2:]]
            for number, at in enumerate(range(0, count, size)):
                for row, cell in enumerate(kept):
                    part = cell[at : at + size]
                    room = slot[row * size : row * size + part.size]
                    room.fill(np.nan)
                    kills.die("in the middle of keeping a part")
                    if self._keeps:
                        room[...] = part
                    yield
                kills.die("after keeping a part")
                word[0] = first + 2 * number + 1
                kills.die("after a word odd")
                yield
                kills.die_within("a part", [cell[at : at + size] for cell in kept])
                kernel(array_at(constants, 99), [cell[at : at + size] for cell in cells])
                kills.die("after a part")
                yield
                word[0] = first + 2 * number + 2
                kills.die("after a word even")
                yield


def array_at(address: int, count: int) -> Array:
    array: Array = np.frombuffer((ctypes.c_float * count).from_address(address), np.float32)
    return array


def at_once(dying: Dying, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have the turns of a sweep be made in any order at the same time; gives how many turns sweeps had."""
    rng, turns = random.Random(0), list[int]()

    async def sweep(finishing: Finishing, sweep: Sweep, on_final: Callable[[int], None]) -> None:
        under_way: list[Iterator[None]] = []
        size = slot_size(finishing._arena.piece)
        for slot, turn in enumerate(sweep.turns):
            calls = finishing.calls(turn, slot)
            assert calls is not None
            word, room = finishing._journal.word(turn.word), finishing._arena.slots[slot * size :]
            steps = [dying.steps(kernel, rows, finishing._part, word, room) for kernel, rows in calls]
            under_way.append(chain(*steps))
        turns.append(len(under_way))
        while under_way:
            one = rng.choice(under_way)
            if next(one, one) is one:
                under_way.remove(one)
        finishing.swept(sweep)
        on_final(sweep.finals[-1])

    monkeypatch.setattr(running, "sweep", sweep)
    return turns


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and parts for a handful of elements."""
    monkeypatch.setattr(updates, "_ELEMENTS_MIN", 0)
    monkeypatch.setattr(sweeping, "ELEMENTS_MIN", 0)
    monkeypatch.setattr(sweeping, "PART_ELEMENTS", 2)


async def survive(
    folder: Path,
    rule: Rule,
    monkeypatch: pytest.MonkeyPatch,
    *,
    compiler: bool,
    keeps: bool = True,
    together: bool = False,
) -> None:
    small(monkeypatch)
    if together:
        monkeypatch.setattr(sweeping, "TURN_ELEMENTS", 8)
    fleet = Fleet(folder / "run", fitting(rule, 0), rule)
    await fleet.start()
    await fleet.step(fitting(rule, 1), lr=0.1)
    kills = Kills(folder / "copies", monkeypatch)
    dying = Dying(kills, monkeypatch, keeps=keeps)
    turns = at_once(dying, monkeypatch) if together else [1]

    def wanted(_: int) -> bool:
        # Those who take up what is left have a compiler or not; the one that dies has.
        return compiler or kills.watches

    monkeypatch.setattr(applying, "wanted", wanted)
    found = await watch(fleet, kills, fitting(rule, 2), 1)
    assert found["finished"] > 20
    assert dying.calls
    assert not together or max(turns) > 2


@pytest.mark.parametrize("compiler", [True, False], ids=["again", "numpy"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_step_survives_death_within_a_kernel(
    folder: Path, rule: Rule, monkeypatch: pytest.MonkeyPatch, *, compiler: bool
) -> None:
    run(partial(survive, folder, rule, monkeypatch, compiler=compiler))


@pytest.mark.parametrize("compiler", [True, False], ids=["again", "numpy"])
@pytest.mark.parametrize("rule", [AdamW(0.1), LAMB(0.1)], ids=repr)
def test_a_step_survives_death_with_several_turns_half_done(
    folder: Path, rule: Rule, monkeypatch: pytest.MonkeyPatch, *, compiler: bool
) -> None:
    run(partial(survive, folder, rule, monkeypatch, compiler=compiler, together=True))


def test_without_what_it_keeps_bits_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    with pytest.raises(AssertionError, match="after a word odd"):
        run(partial(survive, folder, AdamW(0.1), monkeypatch, compiler=True, keeps=False))


def test_a_kernel_in_parts_gives_the_same_bits() -> None:
    kernel, constants = counting()
    for sizes in ((1,), (1023, 1), (1024,), (5000, 64, 2048)):
        size = sum(sizes)
        whole, swept = np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32)
        word, slot = np.zeros(1, np.int64), np.zeros(1024, np.float32)
        kernel(constants, [whole])
        begins = [0, *accumulate(sizes)]
        rows = [row(10 * i, constants, swept[begins[i] : begins[i + 1]]) for i in range(len(sizes))]
        kernel.sweep(np.array(rows, np.int64), 1024, word, slot)
        np.testing.assert_array_equal(swept, whole)
        parts = -(-sizes[-1] // 1024)
        assert word[0] == 10 * (len(sizes) - 1) + 2 * parts
        last = np.arange(begins[-2] + (parts - 1) * 1024, size, dtype=np.float32)
        np.testing.assert_array_equal(slot[: last.size], last)


def row(first: int, constants: Array, p: Array) -> list[int]:
    return [first, p.size, constants.ctypes.data, p.ctypes.data]


def counting() -> tuple[Kernel, Array]:
    """A kernel that adds 1."""
    recorder = Recorder()
    p: Any = recorder.array("p")
    np.add(p, 1.0, out=p)
    return compiled(recorder.program(("p",)), np.dtype(np.float32)), np.array(recorder.constants, np.float32)


def test_what_is_left_by_a_kernel_that_is_killed() -> None:
    """A real process, a real kill: the word never says more than is true."""
    kernel, constants = counting()
    size, part, rng = 1 << 16, 64, random.Random(0)
    halfway = 0
    for _ in range(30):
        with mmap.mmap(-1, 4 * (size + part) + 8) as memory:
            words = np.frombuffer(memory, np.int64, 1)
            elements = np.frombuffer(memory, np.float32, size, 8)
            slot = np.frombuffer(memory, np.float32, part, 8 + 4 * size)
            values, rounds, pid = elements.copy(), 0, child(kernel, constants, elements, part, words, slot)
            time.sleep(rng.uniform(0.002, 0.01))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            _, _, done, held, _ = standing(int(words[0]))
            rounds = int(elements[0]) if done else int(elements[-1]) + 1
            at, stop = done * part, (done + 1) * part
            if done or held:
                values[:at], values[stop:] = rounds, rounds - 1
                values[at:stop] = slot if held else rounds - 1
                if held:
                    np.testing.assert_array_equal(slot, rounds - 1)
                    halfway += 1
                    elements[at:stop] = slot
                np.testing.assert_array_equal(elements[: stop if held else at], values[: stop if held else at])
                np.testing.assert_array_equal(elements[stop:], values[stop:])
            del words, elements, slot
    assert halfway


def child(kernel: Kernel, constants: Array, elements: Array, part: int, word: Words, slot: Array) -> int:
    """A process that does nothing but run the kernel, over and over."""
    rows = np.array([row(0, constants, elements)], np.int64)
    begin = rows.ctypes.data
    addresses = (begin, begin + rows.nbytes, part, word.ctypes.data, slot.ctypes.data)
    call = kernel._call_sweep
    pid = os.fork()
    if pid == 0:
        while True:
            call(*addresses)
    return pid
