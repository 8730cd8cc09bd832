"""The updates of one step, compiled where they can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from threading import Lock, Thread
from typing import Any, Final, NamedTuple

import numpy as np

from stepd.rules import Block, Moment, Reach, Rule
from stepd.rules.base import Array
from stepd_server.kernels.compiled import Kernel, available, compiled
from stepd_server.kernels.emit import SUM
from stepd_server.kernels.trace import Program, Recorder, Recording, Untraceable
from stepd_server.shard.sums import Shaping

log = logging.getLogger(__name__)

# Recording takes as long as NumPy needs for so many elements, and is worth it only once for many blocks, or for one
# that is larger.
_ELEMENTS_MIN: Final = 1 << 14


class Update(NamedTuple):
    """What a group does to elements at one moment."""

    kernel: Kernel
    constants: Array
    constants_at: int


class Updates:
    """What groups do with their blocks in one step: recorded when the first block comes, and kept for the others.

    For several threads.
    """

    def __init__(self, dtype: np.dtype[Any], shaping: Shaping) -> None:
        """
        Args:
            dtype: of all arrays.
            shaping: what makes the sum of contributions a gradient.
        """
        self._dtype = dtype
        self._shaping = shaping
        self._known: dict[tuple[int, Moment], Update | None] = {}
        self._lock = Lock()

    def find(self, group: int, rule: Rule, scale: float, at: Moment, elements: int) -> Update | None:
        """The update of a block, if that can be compiled.

        Args:
            group: index of the group, for its limits.
            rule: of the group in this step.
            scale: what the gradient is multiplied by.
            at: the moment.
            elements: of the block.
        """
        key = (group, at)
        if key not in self._known:
            if elements < _ELEMENTS_MIN:
                return None
            with self._lock:
                if key not in self._known:
                    self._known[key] = self._update(group, rule, scale, at)
        return self._known[key]

    def _update(self, group: int, rule: Rule, scale: float, at: Moment) -> Update | None:
        try:
            program, constants = record(rule, at, self._shaping, group, scale)
        except Untraceable as error:
            _say_once(type(rule).__name__, str(error))
            return None
        numbers = np.array(constants, self._dtype)
        return Update(compiled(program, self._dtype), numbers, numbers.ctypes.data)


def record(rule: Rule, at: Moment, shaping: Shaping, group: int, scale: float) -> tuple[Program, list[float]]:
    """What a rule does to each element, from the sum of contributions on; raise Untraceable if it is not alike.

    Returns:
        The program, whose arrays are parameters, sum and buffers, and its constants.
    """
    if rule.reach is Reach.WHOLE:
        raise Untraceable("it sees a tensor whole")
    recorder = Recorder()
    p, total, g = (recorder.array(name) for name in ("p", SUM, "g"))
    buffers = tuple(recorder.array(f"b{i}") for i, _ in enumerate(rule.buffers()))
    scratch = tuple(recorder.array(f"t{i}") for i in range(rule.scratch))
    shaping.gradient(_as_array(total), group, scale, _as_array(g))
    block = Block(_as_array(p), _as_array(g), tuple(map(_as_array, buffers)), tuple(map(_as_array, scratch)))
    rule.update(block, at)
    return recorder.program((p.name, total.name, *(b.name for b in buffers))), recorder.constants


def prepare(groups: Sequence[tuple[Rule, float]], dtype: np.dtype[Any], elements: int) -> Thread | None:
    """Compile what the first steps of a run take, beside what else there is to do.

    Args:
        groups: rule and limit by value of each.
        dtype: of all arrays.
        elements: of the run on this shard.
    """
    if not wanted(elements):
        return None
    thread = Thread(target=_prepare, args=(groups, dtype), name="compile")
    thread.start()
    return thread


def _prepare(groups: Sequence[tuple[Rule, float]], dtype: np.dtype[Any]) -> None:
    for rule, limit in groups:
        scalars = tuple(scalar.initial for scalar in rule.scalars())
        # Many rules do something else in their first step.
        for step in (1, 2):
            with suppress(Untraceable):
                at = Moment(step, rule.lr, scalars, norms=(1.0, 1.0))
                compiled(record(rule, at, Shaping(1.0, (limit,)), 0, 1.0)[0], dtype)


def wanted(elements: int) -> bool:
    """Whether a run of so many elements on this shard is worth loading the compiler for."""
    return elements >= _ELEMENTS_MIN and available()


def _as_array(recording: Recording) -> Any:
    return recording


@cache
def _say_once(rule: str, why: str) -> None:
    log.info("%s runs in NumPy: %s", rule, why)
