"""A shard that dies within a compiled update finishes it, with a compiler or without one."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.rules import LAMB, SGD, AdamW, NAdam, RMSprop, Rule
from stepd.rules.base import Array
from stepd_server.kernels import updates
from stepd_server.kernels.compiled import Kernel, Parts, available, compiled
from stepd_server.kernels.trace import Recorder
from stepd_server.shard import applying, undo
from stepd_server.shard.journal import Field
from stepd_server.shard.undo import standing

from .kills import Kills
from .shard_bench import Fleet, run
from .test_shard_kills import fitting, folder, watch

pytestmark = pytest.mark.skipif(not available(), reason="llvmlite (stepd[fast]) is not installed")
__all__ = ["folder"]

RULES = [SGD(0.1, momentum=0.9), AdamW(0.1), NAdam(0.1), RMSprop(0.1, momentum=0.9, centered=True), LAMB(0.1)]


class Parted:
    """`Kernel.parted` with deaths in it: what it does, told step by step."""

    def __init__(self, kills: Kills, monkeypatch: pytest.MonkeyPatch, *, keeps: bool = True) -> None:
        self.calls = 0

        def parted(kernel: Kernel, constants: Array, cells: list[Array], parts: Parts) -> None:
            self.calls += 1
            kept, size = [cells[0], *cells[2:]], parts.size
            for number, at in enumerate(range(0, cells[0].size, size)):
                for row, cell in enumerate(kept):
                    part = cell[at : at + size]
                    slot = parts.slot[row * size : row * size + part.size]
                    slot.fill(np.nan)
                    kills.die("in the middle of keeping a part")
                    if keeps:
                        slot[...] = part
                kills.die("after keeping a part")
                parts.word[0] = parts.first + 2 * number + 1
                kills.die("after PART odd")
                kills.die_within("a part", [cell[at : at + size] for cell in kept])
                kernel(constants, [cell[at : at + size] for cell in cells])
                kills.die("after a part")
                parts.word[0] = parts.first + 2 * number + 2
                kills.die("after PART even")

        monkeypatch.setattr(Kernel, "parted", parted)


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels and parts for a handful of elements."""
    monkeypatch.setattr(updates, "_ELEMENTS_MIN", 0)
    monkeypatch.setattr(undo, "PART_ELEMENTS", 2)


async def survive(
    folder: Path, rule: Rule, monkeypatch: pytest.MonkeyPatch, *, compiler: bool, keeps: bool = True
) -> None:
    small(monkeypatch)
    fleet = Fleet(folder / "run", fitting(rule, 0), rule)
    await fleet.start()
    await fleet.step(fitting(rule, 1), lr=0.1)
    kills = Kills(folder / "copies", monkeypatch)
    parted = Parted(kills, monkeypatch, keeps=keeps)
    first = fleet.shards[0]

    def wanted(_: int) -> bool:
        # Those who take up what is left have a compiler or not; the one that dies has.
        return compiler or kills.watches

    monkeypatch.setattr(applying, "wanted", wanted)
    found = await watch(fleet, kills, fitting(rule, 2), 1)
    assert found["finished"] > 20
    assert parted.calls
    assert first.arena.journal[Field.PART]


@pytest.mark.parametrize("compiler", [True, False], ids=["again", "numpy"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_step_survives_death_within_a_kernel(
    folder: Path, rule: Rule, monkeypatch: pytest.MonkeyPatch, *, compiler: bool
) -> None:
    run(partial(survive, folder, rule, monkeypatch, compiler=compiler))


def test_without_what_it_keeps_bits_differ(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above."""
    with pytest.raises(AssertionError, match="after PART odd"):
        run(partial(survive, folder, AdamW(0.1), monkeypatch, compiler=True, keeps=False))


def test_a_kernel_in_parts_gives_the_same_bits() -> None:
    kernel, constants = counting()
    for size in (1, 1023, 1024, 5000):
        whole, parted = np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32)
        word, slot = np.zeros(1, np.int64), np.zeros(1024, np.float32)
        kernel(constants, [whole])
        kernel.parted(constants, [parted], Parts(1024, word, 10, slot))
        np.testing.assert_array_equal(parted, whole)
        parts = -(-size // 1024)
        assert word[0] == 10 + 2 * parts
        last = np.arange((parts - 1) * 1024, size, dtype=np.float32)
        np.testing.assert_array_equal(slot[: last.size], last)


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
            values, rounds, pid = elements.copy(), 0, child(kernel, constants, elements, Parts(part, words, 0, slot))
            time.sleep(rng.uniform(0.002, 0.01))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            done, held, _ = standing(int(words[0]), 0)
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


def child(kernel: Kernel, constants: Array, elements: Array, parts: Parts) -> int:
    """A process that does nothing but run the kernel, over and over."""
    addresses = (elements.size, constants.ctypes.data, parts.size, parts.word.ctypes.data, 0, parts.slot.ctypes.data)
    call, at = kernel._call_parted, ctypes.c_void_p(elements.ctypes.data)
    pid = os.fork()
    if pid == 0:
        while True:
            call(*addresses, at)
    return pid
