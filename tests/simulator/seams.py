"""Where the world takes the place of what is around a process: sizes, clocks, names, stores that may be the last."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from stepd import limits, specs
from stepd_server.shard.applying import Step
from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.staging import Staging
from tests.simulator.loop import Clock, Process, VirtualLoop, running

# Small, so that a tensor of twenty elements has several blocks and comes in several chunks; nor is there much to load.
BLOCK: Final = 8
CHUNK_BYTES: Final = 64

_SMALL: Final[dict[str, tuple[float, float]]] = {
    "BLOCK_ELEMENTS": (limits.BLOCK_ELEMENTS, BLOCK),
    "CHUNK_BYTES": (limits.CHUNK_BYTES, CHUNK_BYTES),
    "LOADING_TIMEOUT_S": (limits.LOADING_TIMEOUT_S, 10.0),
    "_SPANS_AT_ONCE": (4, 1),
    "_UNITS_AT_ONCE": (4, 1),
}

# Modules that have something else in their place.
_STAND_INS: Final = ("time", "uuid", "secrets", "random")
# What everybody in a world makes anew of the same few messages, and what is made is frozen.
_KNOWN: Final = "run_from_proto"
# What changes files, and may be the last that a process does.
_CHANGES: Final[tuple[tuple[Any, str], ...]] = (
    *((os, name) for name in ("posix_fallocate", "fsync")),
    *((Path, name) for name in ("replace", "rename", "write_bytes", "unlink", "mkdir")),
    (shutil, "rmtree"),
)


class Stores:
    """Kills processes at one of their stores: writes and renames of files, and counters of journals.

    Attributes:
        die: by process: how many stores it has left, of those that have this in their names.
    """

    def __init__(self, kill: Callable[[Process, str], None], stored: Callable[[Field], None]) -> None:
        """Args:
        kill: has a process die in the middle of what it does; raises Killed.
        stored: told of every store to a journal.
        """
        self.die: dict[Process, tuple[str, int]] = {}
        self.stored = stored
        self._kill = kill

    def point(self, what: str) -> None:
        """A place where the process may die."""
        if not self.die:
            return
        process = running()
        if process is None or process not in self.die or process.dead:
            return
        where, left = self.die[process]
        if where not in what:
            return
        self.die[process] = (where, left - 1)
        if left <= 1:
            del self.die[process]
            self._kill(process, what)

    def is_last(self, what: str) -> bool:
        """Whether the process running dies at this point, if it is the next."""
        process = running() if self.die else None
        if process is None or process not in self.die:
            return False
        where, left = self.die[process]
        return left == 1 and where in what

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            if not self.die:
                return function(*arguments, **keywords)
            self.point(f"before {name}")
            result = function(*arguments, **keywords)
            self.point(f"after {name}")
            return result

        return guarded


@contextlib.contextmanager
def in_place(loop: VirtualLoop, seed: int, stores: Stores) -> Generator[None, None, None]:
    """The world's own clocks, names and sizes, for as long as the block lasts."""
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        names = random.Random(f"names {seed}")
        stand_ins = {
            "time": Clock(loop),
            "uuid": SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{names.getrandbits(128):032x}")),
            "secrets": SimpleNamespace(token_hex=lambda size: f"{names.getrandbits(8 * size):0{2 * size}x}"),
            "random": random.Random(f"pauses {seed}"),
            _KNOWN: _known(specs.run_from_proto),
        }
        for owner, name in _places(len(sys.modules)):
            put(owner, name, _SMALL[name][1] if name in _SMALL else stand_ins[name])
        layout: Any = sys.modules["stepd.layout"]
        for function in (layout.lay_out, layout.to_proto):
            put(function, "__defaults__", tuple(map(_small, function.__defaults__ or ())))
            put(function, "__kwdefaults__", {k: _small(v) for k, v in (function.__kwdefaults__ or {}).items()})
        for owner, name in _CHANGES:
            put(owner, name, stores.around(name, getattr(owner, name)))
        _put_between_stores(put, stores)
        yield


def _put_between_stores(put: Callable[[Any, str, Any], None], stores: Stores) -> None:
    """Let a shard die between any two of its stores, and in the middle of what is no single one."""
    store, write, update = Journal.store, Journal.write, Step.update
    pwrite, carry_out = os.pwrite, Staging._carry_out

    def stored(journal: Journal, field: Any, value: int) -> None:
        if not stores.die:
            store(journal, field, value)
            stores.stored(field)
            return
        stores.point(f"before journal {field.name} = {value}")
        store(journal, field, value)
        stores.stored(field)
        stores.point(f"after journal {field.name} = {value}")

    def written(journal: Journal, target: Any, source: Any) -> None:
        if not stores.die:
            write(journal, target, source)
            return
        stores.point("before an array")
        if stores.is_last("in the middle of an array"):
            half = len(source) // 2
            write(journal, target[:half], source[:half])
        stores.point("in the middle of an array")
        write(journal, target, source)
        stores.point("after an array")

    def updated(step: Step, spans: Any) -> None:
        stores.point("before an update")
        update(step, spans)
        if stores.is_last("in the middle of an update"):
            # Whatever an instruction may have left of what is updated in place.
            step._arena.parameters[spans[0].start : (spans[0].start + spans[-1].stop + 1) // 2] = np.nan
        stores.point("in the middle of an update")

    def pwritten(descriptor: int, data: bytes, offset: int) -> int:
        stores.point("before pwrite")
        if stores.is_last("in the middle of pwrite"):
            pwrite(descriptor, data[: len(data) // 2], offset)
        stores.point("in the middle of pwrite")
        written = pwrite(descriptor, data, offset)
        stores.point("after pwrite")
        return written

    def carried_out(staging: Staging, request: Any) -> Any:
        for each in carry_out(staging, request):
            stores.point("between the arrays of a state")
            yield each

    put(Journal, "store", stored)
    put(Journal, "write", written)
    put(Step, "update", updated)
    put(os, "pwrite", pwritten)
    put(Staging, "_carry_out", carried_out)


def _known(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make of each message once what is made of it."""
    made: dict[bytes, Any] = {}

    def known(message: Any) -> Any:
        key = message.SerializeToString(deterministic=True)
        if key not in made:
            made[key] = make(message)
        return made[key]

    return known


def _small(default: Any) -> Any:
    return BLOCK if default == _SMALL["BLOCK_ELEMENTS"][0] else default


@functools.cache
def _places(_: int) -> list[tuple[Any, str]]:
    """Modules of ours that took one of these in by its name; found anew when there are more modules."""
    found: list[tuple[Any, str]] = []
    for ours, module in list(sys.modules.items()):
        if ours.split(".")[0] in ("stepd", "stepd_server"):
            found += [(module, _KNOWN)] if vars(module).get(_KNOWN) is specs.run_from_proto else []
            found += [(module, name) for name, (usual, _) in _SMALL.items() if getattr(module, name, None) == usual]
            found += [(module, name) for name in _STAND_INS if getattr(module, name, None) is sys.modules.get(name)]
    return found
