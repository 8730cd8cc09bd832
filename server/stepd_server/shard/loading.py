"""Parameters that come in for the first time: checked, and put where they belong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import numpy as np

from stepd import wire
from stepd.errors import FailedPrecondition, InvalidArgument, StepdError
from stepd_server.shard.arena import Arena
from stepd_server.shard.gathering import as_array


async def load(arena: Arena, first: int, chunks: AsyncIterator[wire.Chunk], check: Callable[[], object]) -> None:
    """Fill the parameters of the flat space from element `first` to its end.

    Args:
        check: called before memory is touched; raises if it must not be any more.
    """
    piece = arena.piece
    at, size = 0, piece.size - first
    async for chunk in chunks:
        check()
        count = wire.check_chunk(chunk, at, size, piece.dtype.itemsize)
        data = as_array(chunk.data, piece.dtype)
        finite = np.isfinite(data)
        if not finite.all():
            parameter = piece.parameter_at(first + at + int(np.argmin(finite)))
            name = piece.spec.parameters[parameter].name
            raise InvalidArgument(
                f"initial parameter {name!r} must be finite, got {data[np.argmin(finite)]}",
                reason="NONFINITE_PARAMETER",
                parameter=name,
            )
        arena.parameters[first + at : first + at + count] = data
        at += count
    check()
    if at != size:
        raise cut_short(at, size)


def cut_short(at: int, size: int) -> StepdError:
    return InvalidArgument(
        f"the stream ended after {at} of {size} elements", reason="BAD_CHUNK", expected=size, given=at
    )


def lacking(run: str, loaded: int, size: int) -> FailedPrecondition:
    """The error for a run that is to start before its parameters are here."""
    return FailedPrecondition(
        f"run {run!r} lacks initial parameters on this shard: {loaded} of {size} elements are loaded",
        reason="RUN_NOT_STARTED",
    )
