"""A run's memory on a shard: mapped files, so that the death of the process leaves them as they are.

run.pb          what the run was prepared with, written last
journal         counters: where the run stands, and whether a step was under way
updates         for each slice, how often its parameter was updated (torch's state["step"])
scalars         for each slice, what else its rule keeps for its parameter: a row as long as the longest of any rule
                (scalars.V in version V of the layout, from 1)
parameters      the masters, flat
accumulator     the gradient of the round, flat
averaged        the run's average of the parameters, flat, if it keeps one; zeros until the first step that counts
G.NAME          buffer NAME of group G's rule, flat over the group's stretch, or tensor by tensor if its size is its own
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stepd.errors import ResourceExhausted
from stepd.rules.base import Array
from stepd.v1 import run_pb2, shard_control_pb2
from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.plan import Piece

# Memory that is there when it is taken saves a page fault for each 4 KiB in the first step.
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)


# What the system says when there is no memory, or no room on a disk.
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)


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
        self._prepared = prepared
        self.run_id = prepared.run_id
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.journal = Journal(_map(folder / "journal", len(Field), np.dtype("<i8")))
            self.updates = _map(folder / "updates", len(piece.slices), np.dtype("<i8"))
            self._scalars = _map(folder / piece.scalars_file, len(piece.slices) * piece.scalars, np.dtype("<f8"))
            self.parameters: Array = _map(folder / "parameters", piece.size, piece.dtype)
            self.accumulator: Array = _map(folder / "accumulator", piece.size, piece.dtype)
            self.averaged: Array | None = None
            if piece.average is not None:
                self.averaged = _map(folder / "averaged", piece.size, piece.dtype)
            self.buffers: tuple[tuple[Array, ...], ...] = tuple(
                tuple(
                    _map(folder / f"{index}.{buffer.name}", size, piece.dtype)
                    for buffer, size in zip(group.rule.buffers(), group.buffer_sizes, strict=True)
                )
                for index, group in enumerate(piece.groups)
            )
            if not staged:
                self.write_prepared()
        except OSError as error:
            if not staged:
                self.remove()
            if error.errno not in _NO_ROOM:
                raise
            raise ResourceExhausted(
                f"no room for run {piece.spec.name!r}: its piece needs {_bytes_needed(piece)} bytes in {folder.parent}",
                needed=_bytes_needed(piece),
            ) from error

    @property
    def bytes(self) -> int:
        """Bytes of parameters, average, buffers and accumulator."""
        return _bytes_needed(self.piece)

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

    @averaged_steps.setter
    def averaged_steps(self, count: int) -> None:
        self.journal.store(Field.AVERAGED, count)

    @property
    def torn(self) -> bool:
        """Whether the process died in the middle of a step."""
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
        return tuple(self._scalars[start : start + count].tolist())

    def set_scalars(self, index: int, values: tuple[float, ...]) -> None:
        start = index * self.piece.scalars
        self._scalars[start : start + len(values)] = values

    def begin(self) -> None:
        """A step is about to change the arrays."""
        self.journal.store(Field.INTENT, self.round + 1)

    def finish(self, step: int) -> None:
        """The round is over, and `step` steps have been applied."""
        self.journal.store(Field.STEP, step)
        self.journal.store(Field.INTENT, self.round + 1)
        self.journal.store(Field.ROUND, self.round + 1)

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
            return _map(self.folder / name, size, self.piece.dtype)
        except OSError as error:
            (self.folder / name).unlink(missing_ok=True)
            if error.errno not in _NO_ROOM:
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


def _bytes_needed(piece: Piece) -> int:
    flat = 3 if piece.average else 2
    arrays = flat * piece.size + sum(sum(group.buffer_sizes) for group in piece.groups)
    return arrays * piece.dtype.itemsize


def _map(path: Path, size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The array in a file of exactly this size, which is made with zeros if it is not there."""
    if size == 0:
        return np.empty(0, dtype)
    length = size * dtype.itemsize
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Without this a full disk shows as SIGBUS in the middle of a step.
        os.posix_fallocate(descriptor, 0, length)
        mapping = mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED | _POPULATE)
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, dtype)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
