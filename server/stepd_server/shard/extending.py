"""A group on its way into a run on this shard: its memory lies behind that of the run, in the same files.

The longer files are mapped a second time, so that the run goes on with what it has while the extension is loaded: both
mappings show the same memory. Only the scalars are in a file of their own, as their rows may become longer. Settling
replaces run.pb; a process that dies before it leaves the run as it was, and one that dies after it, the extended run.

extension.pb    what the run is to be extended to, written once all of it is here
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from stepd import wire
from stepd.errors import FailedPrecondition, InvalidArgument, NotFound
from stepd.v1 import shard_control_pb2
from stepd_server.shard.arena import Arena
from stepd_server.shard.files import write_whole
from stepd_server.shard.loading import load
from stepd_server.shard.plan import Piece

_FILE = "extension.pb"


class Extension:
    """What a run will be here once it is settled.

    Attributes:
        id: the request_id of the group that is added.
        arena: the run's memory with it.
        sealed: it is whole, and survives the process.
    """

    def __init__(self, request: shard_control_pb2.ExtendRunRequest, present: Arena, index: int) -> None:
        """Take the memory; if there is not enough, everything is as it was."""
        piece = Piece.of(request.prepared.spec, request.prepared.layout, index)
        _check(piece, present.piece)
        self.id = request.extension
        self.request = request
        self.sealed = False
        self._present = present
        self._loaded = False
        self._dropped = False
        try:
            self.arena = Arena(present.folder, piece, request.prepared, staged=True)
        except BaseException:
            _trim(present, piece)
            raise

    @property
    def version(self) -> int:
        return self.arena.piece.version

    async def load(self, chunks: AsyncIterator[wire.Chunk]) -> None:
        """Take the parameters that it adds."""
        if self.sealed:
            return  # it has them
        self.check_open()
        self._loaded = False
        # Memory that was given back must not be touched, and a stream takes its time.
        await load(self.arena, self._present.piece.size, chunks, self.check_open)
        self._loaded = True

    def seal(self) -> None:
        """It is whole: fill its buffers, and have it survive the process."""
        if self.sealed:
            return
        present = self._present.piece
        if not self._loaded and self.arena.piece.size > present.size:
            raise FailedPrecondition(
                f"run {present.spec.name!r} lacks parameters of the group that is added on this shard",
                reason="RUN_NOT_STARTED",
            )
        self.arena.updates[len(present.slices) :] = 0  # the files may have been this long before
        self.arena.fill(first_group=len(present.groups), first_slice=len(present.slices))
        write_whole(self.arena.folder / _FILE, self.request.SerializeToString())
        self.sealed = True

    def settle(self) -> Arena:
        """Make it the run; not while a step is under way."""
        self.arena.take_scalars(self._present)
        self.arena.write_prepared()
        _forget(self._present)
        self._dropped = True
        return self.arena

    def drop(self) -> None:
        """Give the memory back."""
        if not self._dropped:
            self._dropped = True
            _trim(self._present, self.arena.piece)

    def check_open(self) -> None:
        """Raise if it cannot be loaded any more."""
        if self._dropped or self.sealed:
            raise no_extension(self._present.piece.spec.name)


def no_extension(run: str) -> NotFound:
    return NotFound(f"run {run!r}: this group is not being added here (any more)", run=run)


def restore(present: Arena, index: int) -> Extension | None:
    """What an earlier process had sealed and not settled."""
    path = present.folder / _FILE
    try:
        request = shard_control_pb2.ExtendRunRequest.FromString(path.read_bytes())
    except FileNotFoundError:
        return None
    if request.prepared.layout.version <= present.piece.version:
        path.unlink()  # settled: the process died before it could forget
        return None
    extension = Extension(request, present, index)
    extension.sealed = True
    return extension


def _check(piece: Piece, present: Piece) -> None:
    """An extension must begin with what is there: its arrays are the same memory."""
    begins = piece.slices[: len(present.slices)] == present.slices and len(piece.groups) >= len(present.groups)
    if not begins or (piece.block, piece.dtype) != (present.block, present.dtype):
        raise InvalidArgument(f"run {present.spec.name!r}: an extension must begin with the slices that are there")


def _trim(present: Arena, piece: Piece) -> None:
    """Undo the growth of the run's files."""
    for name, length in present.lengths.items():
        if not length:
            _unlink(present.folder / name)
            continue
        with contextlib.suppress(FileNotFoundError):
            os.truncate(present.folder / name, length)
    for index in range(len(present.piece.groups), len(piece.groups)):
        for path in present.folder.glob(f"{index}.*"):
            path.unlink()
    _unlink(present.folder / piece.scalars_file)
    _unlink(present.folder / _FILE)


def _forget(before: Arena) -> None:
    """Remove what only the run as it was, or its way here, needs."""
    _unlink(before.folder / before.piece.scalars_file)
    _unlink(before.folder / _FILE)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
