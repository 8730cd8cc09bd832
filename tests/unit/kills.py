"""Death at every place of a step: what a new process would find there, for as many processes as there are places.

While a step goes on, its folder is copied after every store of the journal, halfway through and after every array that
is written, and in the middle of what changes arrays in place, where anything may stand in them. Nothing is killed, so
one step gives all copies. (Mappings are shared: a copy of the files is what the death of the process would leave.)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.rules import Block, Moment, Rule
from stepd.rules.base import Array
from stepd_server.shard.averaging import Averaging
from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.run import ShardRun


class Kills:
    """Copies a folder at every place where a process can die."""

    def __init__(self, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._into = into
        self._folder: Path | None = None
        self._copies: list[tuple[str, Path]] = []
        self._made = 0
        self._watch_journal(monkeypatch)
        self._watch_updates(monkeypatch)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Copies are made only within."""
        self._folder = folder
        self.die("at the beginning")
        try:
            yield
        finally:
            self._folder = None

    @property
    def watches(self) -> bool:
        """Whether copies are being made."""
        return self._folder is not None

    def copies(self) -> list[tuple[str, Path]]:
        """Those made since this was asked last, each with where it was."""
        copies, self._copies = self._copies, []
        return copies

    def die(self, where: str) -> None:
        """Copy what is there now."""
        if self._folder is not None:
            copy = self._into / f"{self._made}"
            shutil.copytree(self._folder, copy)
            self._copies.append((where, copy))
            self._made += 1

    def _watch_journal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store, mark, write = Journal.store, Journal.mark, Journal.write

        def storing(journal: Journal, field: Field, value: int) -> None:
            store(journal, field, value)
            self.die(f"after {field.name} = {value}")

        def marking(journal: Journal, turn: int, value: int) -> None:
            mark(journal, turn, value)
            self.die(f"after turn {turn} = {value:x}")

        def writing(journal: Journal, target: Array, source: Array) -> None:
            if self._folder and target.size > 1:
                half = target.size // 2
                write(journal, target[:half], source[:half])
                self.die("in the middle of an array")
            write(journal, target, source)
            if target.size:
                self.die("after an array")

        monkeypatch.setattr(Journal, "store", storing)
        monkeypatch.setattr(Journal, "mark", marking)
        monkeypatch.setattr(Journal, "write", writing)

    def _watch_updates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        add = Averaging.add

        def adding(averaging: Averaging, start: int, stop: int, t: Array) -> None:
            if averaging.counts and averaging._arena.averaged is not None:
                self.die_within("an average", [averaging._arena.averaged[start:stop]])
            add(averaging, start, stop, t)

        monkeypatch.setattr(Averaging, "add", adding)
        for kind in Rule.registry.values():
            if "update" in vars(kind):
                self._watch_update(kind, monkeypatch)

    def _watch_update(self, kind: type[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
        update = kind.update

        def updating(rule: Rule, block: Block, at: Moment) -> None:
            if isinstance(block.p, np.ndarray):  # and not a recording of what is done to arrays
                self.die_within("an update", [block.p, *block.buffers])
            update(rule, block, at)

        monkeypatch.setattr(kind, "update", updating)

    def die_within(self, what: str, arrays: list[Array]) -> None:
        """Copy what is there with anything in some arrays."""
        if self._folder is not None:
            before = [array.copy() for array in arrays]
            for array in arrays:
                array.fill(np.nan)
            self.die(f"in the middle of {what}")
            for array, values in zip(arrays, before, strict=True):
                array[...] = values


def bits(shard: ShardRun) -> dict[str, Any]:
    """All that a step changes."""
    arena = shard.arena
    arrays = {"parameters": arena.parameters, "updates": arena.updates, "scalars": arena.flat_scalars}
    if arena.averaged is not None:
        arrays["averaged"] = arena.averaged
    for group, buffers in enumerate(arena.buffers):
        arrays |= {f"{group}.{i}": buffer for i, buffer in enumerate(buffers)}
    numbers = {field.name: arena.journal[field] for field in (Field.ROUND, Field.INTENT, Field.STEP, Field.AVERAGED)}
    return {**numbers, **{name: array.tobytes() for name, array in arrays.items()}}
