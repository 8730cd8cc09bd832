"""Memory shared with workers on the same host: who may, and what of it a contribution names.

A worker shows its memory by writing our secret into it, and that it is on this host and of this user by our being able
to open it there. So nobody can have this process read a file that was not meant for it; and the file can no longer
shrink, for a reader of what has gone is killed by the system.
"""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import mmap
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any, Final

import numpy as np

from stepd import wire
from stepd.errors import InvalidArgument
from stepd.rules.base import Array
from stepd.v1 import shard_pb2
from stepd_server.shard.arena import Arena
from stepd_server.shard.gathering import key_of, not_shared
from stepd_server.shard.journal import Field
from stepd_server.shard.pulling import Pulling

SECRET_BYTES: Final = 32
_ALIGNMENT: Final = 8


class Lying(wire.Chunk):
    """A chunk that lies in the memory of its worker."""


class Lent:
    """What a shard lends to one worker: files that can be opened as long as this is not closed."""

    def __init__(self, arena: Arena) -> None:
        self._parameters = os.open(arena.folder / "parameters", os.O_RDONLY | os.O_CLOEXEC)
        self._journal = os.open(arena.folder / "journal", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def terms(self) -> shard_pb2.ShareMemoryTerms:
        return shard_pb2.ShareMemoryTerms(
            process=os.getpid(), parameters=self._parameters, journal=self._journal, begun=8 * Field.INTENT
        )

    def close(self) -> None:
        os.close(self._parameters)
        os.close(self._journal)


def attach(proof: shard_pb2.ShareMemoryProof, secret: bytes, dtype: np.dtype[Any]) -> Array:
    """The worker's elements, where they lie; FailedPrecondition NOT_SHARED if that cannot be."""
    path = f"/proc/{proof.process}/fd/{proof.descriptor}"
    try:
        # Looked at before it is opened: opening a pipe or a device does something to it.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise not_shared("its memory is no file of this user")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise not_shared(f"its memory cannot be opened here: {error.strerror}") from error
    try:
        return _elements(descriptor, proof, secret, dtype)
    except (OSError, ValueError, OverflowError) as error:
        raise not_shared(f"its memory cannot be mapped: {error}") from error
    finally:
        os.close(descriptor)


def _elements(descriptor: int, proof: shard_pb2.ShareMemoryProof, secret: bytes, dtype: np.dtype[Any]) -> Array:
    if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise not_shared("its memory can shrink (F_SEAL_SHRINK)")
    length = proof.start + proof.count * dtype.itemsize
    if proof.start % _ALIGNMENT or length > os.fstat(descriptor).st_size:
        raise not_shared(f"it has no {proof.count} elements from byte {proof.start} on")
    if not hmac.compare_digest(os.pread(descriptor, len(secret), proof.secret), secret):
        raise not_shared("its memory does not hold the secret")
    mapping = mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    elements: Array = np.frombuffer(mapping, dtype, proof.count, proof.start)
    return elements


async def share(
    offer: shard_pb2.ShareMemoryOffer, requests: AsyncIterator[shard_pb2.ShareMemoryRequest], run: Pulling
) -> AsyncGenerator[shard_pb2.ShareMemoryResponse, None]:
    """Agree with a worker, and share with it for as long as both are there.

    Args:
        offer: of the worker.
        requests: what it says after that.
        run: whose parameters it may read, and where its memory is known meanwhile.
    """
    if not run.has_layout(offer.layout_version):
        raise not_shared("the shard has yet to take a group in")
    key, secret = key_of(offer.member), os.urandom(SECRET_BYTES)
    lent, memory = Lent(run.arena), None
    try:
        yield shard_pb2.ShareMemoryResponse(challenge=shard_pb2.ShareMemoryChallenge(secret=secret))
        request = await anext(aiter(requests), None)
        if request is None or request.WhichOneof("message") != "proof":
            raise InvalidArgument("a challenge is answered with a proof", reason="BAD_CHUNK", expected="proof")
        memory = run.memories[key] = attach(request.proof, secret, run.arena.piece.dtype)
        yield shard_pb2.ShareMemoryResponse(terms=lent.terms)
        await _until_either(_end_of(requests), run.until_closed())
    finally:
        if memory is not None and run.memories.get(key) is memory:
            del run.memories[key]
        lent.close()


async def _end_of(requests: AsyncIterator[object]) -> None:
    async for _ in requests:
        return


async def _until_either(*events: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def parts(shared: shard_pb2.SharedChunk, memory: Array | None, size: int) -> list[Lying]:
    """What a contribution names, as chunks of at most so many bytes that lie in the worker's memory."""
    if memory is None:
        raise not_shared("it has not asked, or this shard has been started again")
    if shared.at + shared.count > memory.size:
        raise InvalidArgument(
            f"the memory shared holds {memory.size} elements, got a chunk that goes to {shared.at + shared.count}",
            reason="BAD_CHUNK",
            expected=memory.size,
            given=shared.at + shared.count,
        )
    size //= memory.dtype.itemsize
    named = memory[shared.at : shared.at + shared.count]
    return [Lying(shared.offset + at, named[at : at + size].view(np.uint8).data) for at in range(0, shared.count, size)]
