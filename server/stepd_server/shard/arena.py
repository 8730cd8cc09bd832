"""A run's memory on a shard: mapped files, so that the death of the process leaves them as they are.

run.pb          what the run was prepared with, written last
journal         where the run stands (journal.py)
updates         for each slice, how often its parameter was updated (torch's state["step"])
scalars         for each slice, what else its rule keeps for its parameter: a row as long as the longest of any rule
                (scalars.V in version V of the layout, from 1)
updates.next    both as they will be after the step under way
scalars.next
parameters      the masters, flat
accumulator     the gradient of the round, flat
averaged        the run's average of the parameters, flat, if it keeps one; zeros until the first step that counts
G.NAME          buffer NAME of group G's rule, flat over the group's stretch, or tensor by tensor if its size is its own
undo            what the part of a step that is under way overwrites (undo.py)
sweeps          where kernels stand that go through many units at once, and what each thread's overwrites (sweeping.py)
slots
gathered        what is gathered: numbers, and which slices are touched (gathered.py)
touched
decision.0, .1  the decisions of the last two rounds (remembering.py)
counted         which contribution of each membership was counted last (counted.py)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepd.errors import ResourceExhausted
from stepd.rules.base import Array
from stepd.v1 import run_pb2, shard_control_pb2
from stepd_server.shard.counted import Counted
from stepd_server.shard.files import NO_ROOM, map_array, write_whole
from stepd_server.shard.gathered import GatheredFile
from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.plan import Counts, Piece
from stepd_server.shard.remembering import Remembering
from stepd_server.shard.sweeping import slot_size, slots, turns_max
from stepd_server.shard.undo import undo_size


class Arena:
    """The arrays of one run's piece."""

    def __init__(
        self, folder: Path, piece: Piece, prepared: shard_control_pb2.PrepareRunRequest, *, staged: bool = False
    ) -> None:
        """Map the files in `folder`, making those that are not there.

        Args:
            staged: beside another arena in the same folder, which it is to replace (see extending.py).
        """
        self.folder = folder
        self.piece = piece
        self.run_id = prepared.run_id
        # By file: how long it is.
        self.lengths: dict[str, int] = {}
        self._prepared = prepared
        found = read_prepared(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._map_all(piece)
            if not staged and found != prepared:
                self.write_prepared()
        except (OSError, ResourceExhausted) as error:
            if found is None:
                self.remove()
            needed = self.bytes
            # The error knows this object: what has been mapped is given back now, and not when it is forgotten.
            vars(self).clear()
            if isinstance(error, OSError) and error.errno not in NO_ROOM:
                raise
            raise ResourceExhausted(
                f"no room for run {piece.spec.name!r}: its piece needs {needed} bytes in {folder.parent}",
                needed=needed,
            ) from error

    def _map_all(self, piece: Piece) -> None:
        slices, scalars, counts, doubles = len(piece.slices), piece.scalars, np.dtype("<i8"), np.dtype("<f8")
        self.journal = Journal(self._map("journal", len(Field), counts), self._map("sweeps", turns_max(piece), counts))
        self.updates: Counts = self._map("updates", slices, counts)
        self.flat_scalars = self._map(piece.scalars_file, slices * scalars, doubles)
        self.next_updates: Counts = self._map("updates.next", slices, counts)
        self.next_scalars = self._map("scalars.next", slices * scalars, doubles)
        self.parameters: Array = self._map("parameters", piece.size, piece.dtype)
        self.accumulator: Array = self._map("accumulator", piece.size, piece.dtype)
        self.averaged: Array | None = None
        if piece.average is not None:
            self.averaged = self._map("averaged", piece.size, piece.dtype)
        self.buffers: tuple[tuple[Array, ...], ...] = tuple(
            tuple(
                self._map(f"{index}.{buffer.name}", size, piece.dtype)
                for buffer, size in zip(group.rule.buffers(), group.buffer_sizes, strict=True)
            )
            for index, group in enumerate(piece.groups)
        )
        self.undo: Array = self._map("undo", undo_size(piece), piece.dtype)
        self.slots: Array = self._map("slots", slots(piece) * slot_size(piece), piece.dtype)
        self.gathered = GatheredFile(
            piece,
            self.journal,
            self._map("gathered", GatheredFile.size(piece), doubles),
            self._map("touched", slices, np.dtype(np.bool_)),
        )
        self.remembering = Remembering(self.folder, piece, self.journal)
        self.counted = Counted(self.folder, self.journal)

    def _map(self, name: str, size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        self.lengths[name] = size * dtype.itemsize
        return map_array(self.folder / name, size, dtype)

    @property
    def bytes(self) -> int:
        """Bytes of parameters, average, buffers, accumulator and undo slots."""
        piece = self.piece
        flat = 3 if piece.average else 2
        arrays = flat * piece.size + sum(sum(group.buffer_sizes) for group in piece.groups)
        return (arrays + undo_size(piece) + slots(piece) * slot_size(piece)) * piece.dtype.itemsize

    @property
    def sealed(self) -> bool:
        return bool(self.journal[Field.SEALED])

    @property
    def round(self) -> int:
        return self.journal[Field.ROUND]

    @property
    def step(self) -> int:
        return self.journal[Field.STEP]

    @property
    def averaged_steps(self) -> int:
        """Steps that have gone into the average."""
        return self.journal[Field.AVERAGED]

    @property
    def unfinished(self) -> bool:
        """Whether a decision is being carried out, by this process or by one that died."""
        return self.journal[Field.INTENT] != self.journal[Field.ROUND]

    def write_prepared(self) -> None:
        """From here on, whoever opens the folder finds this run."""
        write_whole(self.folder / "run.pb", self._prepared.SerializeToString())

    def seal(self) -> None:
        """The initial parameters are complete: fill the buffers and open the run."""
        self.fill(first_group=0, first_slice=0)
        self.journal.store(Field.SEALED, 1)

    def fill(self, *, first_group: int, first_slice: int) -> None:
        """Give what rules keep its value before the first step, from a group and its first slice on."""
        for group, arrays in zip(self.piece.groups[first_group:], self.buffers[first_group:], strict=True):
            for buffer, array in zip(group.rule.buffers(), arrays, strict=True):
                own = buffer.initial == "parameter"
                array[:] = self.parameters[group.start : group.stop] if own else buffer.initial
        for index in range(first_slice, len(self.piece.slices)):
            rule = self.piece.groups[self.piece.group_of(index)].rule
            self.set_scalars(index, tuple(scalar.initial for scalar in rule.scalars()))
        if self.averaged is not None:
            # Of parameters that come to a run which has averaged already, the average so far is what they begin with.
            begin = self.piece.starts[first_slice]
            self.averaged[begin:] = self.parameters[begin:]

    def take_scalars(self, before: Arena) -> None:
        """Copy the scalars of all slices of an arena that this one extends."""
        for index in range(len(before.piece.slices)):
            self.set_scalars(index, before.scalars(index, before.piece.scalars))

    def scalars(self, index: int, count: int) -> tuple[float, ...]:
        """The first `count` scalars of a slice, which are all that its rule keeps."""
        start = index * self.piece.scalars
        return tuple(self.flat_scalars[start : start + count].tolist())

    def set_scalars(self, index: int, values: tuple[float, ...]) -> None:
        start = index * self.piece.scalars
        self.flat_scalars[start : start + len(values)] = values

    def prepare_scalars(self, index: int, values: tuple[float, ...]) -> None:
        """What the scalars of a slice will be after the step under way."""
        start = index * self.piece.scalars
        self.journal.write(self.next_scalars[start : start + len(values)], np.array(values))

    def change_groups(self, groups: Iterable[run_pb2.GroupSpec]) -> None:
        """Have the groups other hyperparameters, under which their rules keep the same buffers."""
        prepared = shard_control_pb2.PrepareRunRequest()
        prepared.CopyFrom(self._prepared)
        del prepared.spec.groups[:]
        prepared.spec.groups.extend(groups)
        self._prepared = prepared
        self.write_prepared()
        self.piece = replace(self.piece, spec=prepared.spec)

    def beside(self, name: str, size: int) -> Array:
        """A further array of the run's dtype in a file of its own; ResourceExhausted if there is no room."""
        try:
            return map_array(self.folder / name, size, self.piece.dtype)
        except OSError as error:
            (self.folder / name).unlink(missing_ok=True)
            if error.errno not in NO_ROOM:
                raise
            needed = size * self.piece.dtype.itemsize
            raise ResourceExhausted(
                f"no room for {name} of run {self.piece.spec.name!r}: it needs {needed} bytes in {self.folder.parent}",
                needed=needed,
            ) from error

    def remove(self) -> None:
        """Delete the files. The memory is free when nobody refers to the arrays any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def read_prepared(folder: Path) -> shard_control_pb2.PrepareRunRequest | None:
    """What the run in `folder` was prepared with; None if that was never finished."""
    try:
        return shard_control_pb2.PrepareRunRequest.FromString((folder / "run.pb").read_bytes())
    except FileNotFoundError:
        return None
