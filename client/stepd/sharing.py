"""Memory shared with shards on the same host, in place of sending: who shares with whom, and for how long.

A worker and a shard show each other that they are on one host and may read each other's memory; then the stream on
which they did so stays open, and ends the sharing when either of them ends it or dies. Everything else goes as ever:
the same calls, receipts, rounds and errors, only that chunks say where elements lie and do not hold them.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import grpc
import numpy as np

from stepd import wire
from stepd.buffers import Array
from stepd.errors import Aborted, FailedPrecondition, StepdError, Unavailable
from stepd.limits import SHARED_BYTES_MIN
from stepd.session import Session
from stepd.shared_memory import Memory, can_share
from stepd.status import from_rpc_error
from stepd.transfer import Plan, ShardPush
from stepd.v1 import round_pb2, shard_pb2

# What agreeing with one shard may take. It is one process away, or it does not work at all.
AGREE_S: Final = 5.0
# Between tries with a shard that was lost.
AGAIN_S: Final = 1.0


class Link:
    """What a worker and one shard share.

    Attributes:
        version: of the layout that it goes by.
        parameters: of the shard's flat space; can only be read.
    """

    def __init__(self, memory: Memory, call: Any, parameters: Array, begun: Array) -> None:
        self.version = memory.version
        self._memory = memory
        self._call = call
        self.parameters = parameters
        self._begun = begun
        self._ended = asyncio.ensure_future(_end_of(call))

    @property
    def alive(self) -> bool:
        return not self._ended.done()

    def end(self) -> None:
        self._call.cancel()

    def messages(self, push: ShardPush, views: Mapping[int, Array]) -> Iterator[bytes]:
        """A contribution's messages after its header; what they name is there when they are made."""
        for offset, count, at in self._memory.place(push, views):
            chunk = shard_pb2.SharedChunk(offset=offset, count=count, at=at)
            yield shard_pb2.PushRequest(shared=chunk).SerializeToString()

    def chunk(self, shared: shard_pb2.SharedChunk) -> wire.Chunk:
        """The elements that a shard says are final."""
        part = self.parameters[shared.offset : shared.offset + shared.count]
        if part.size != shared.count:
            raise StepdError(f"a shard shares {self.parameters.size} elements and named {shared.offset + shared.count}")
        return wire.Chunk(shared.offset, part.view(np.uint8).data)

    @property
    def begun(self) -> int:
        """Rounds that the shard has begun to apply."""
        return int(self._begun[0])

    def check_version(self, header: shard_pb2.PullHeader) -> None:
        """Raise Aborted VERSION_PASSED if what was read since the header may have been written over."""
        if self.begun > header.round:
            raise Aborted(
                f"step {header.step} has been overwritten while it was read", reason="VERSION_PASSED", step=header.step
            )


class Sharing:
    """A worker's links to the shards of its run. In the session's loop."""

    def __init__(self, session: Session, run: str, member: round_pb2.Member) -> None:
        self._session = session
        self._run = run
        self._member = member
        self._memory: Memory | None = None
        self._links: dict[int, Link] = {}
        self._opening: dict[int, asyncio.Task[None]] = {}
        self._tried: dict[int, float] = {}
        # Not tried again: they are on other hosts.
        self._elsewhere: set[int] = set()

    async def begin(self, plan: Plan) -> None:
        """Share with all shards that can; raise if one cannot and the session's transport is "shm"."""
        if self._session.transport == "grpc":
            return
        shards = sorted(_large(plan))
        results = await asyncio.gather(*(self._open(shard, plan) for shard in shards), return_exceptions=True)
        failures = {s: result for s, result in zip(shards, results, strict=True) if isinstance(result, BaseException)}
        if self._session.transport == "auto":
            unexpected = [failure for failure in failures.values() if not isinstance(failure, FailedPrecondition)]
            self._elsewhere = {shard for shard, failure in failures.items() if not _passes(failure)}
        else:
            unexpected = list(failures.values())
        if unexpected:
            self.close()
            raise unexpected[0]

    def link(self, shard: int, plan: Plan) -> Link | None:
        """What is shared with a shard now; if nothing is, it is tried again meanwhile."""
        link = self._links.get(shard)
        if link is not None and link.alive and link.version == plan.version:
            return link
        if self._session.transport != "grpc" and shard not in self._elsewhere and shard in _large(plan):
            self._open_later(shard, plan)
        return None

    def drop(self, shard: int) -> None:
        """The shard knows nothing of a link that we have."""
        if link := self._links.pop(shard, None):
            link.end()

    def rename(self, member: round_pb2.Member) -> None:
        """The worker is another member now: shards get to know it anew, with the next contribution."""
        self._member = member
        self._tried.clear()
        for task in self._opening.values():
            task.cancel()
        for shard in list(self._links):
            self.drop(shard)

    def gradients(self, plan: Plan) -> dict[str, Array]:
        """Arrays for gradients, in the memory that is shared."""
        return self._memory_of(plan).gradients()

    def abandon(self) -> None:
        """Close, from any thread."""
        self._session.loop.post(self.close)

    def close(self) -> None:
        """End all links. Arrays that were lent stay good."""
        for task in self._opening.values():
            task.cancel()
        for shard in list(self._links):
            self.drop(shard)
        if self._memory:
            self._memory.close()
            self._memory = None

    def _memory_of(self, plan: Plan) -> Memory:
        if self._memory is None or self._memory.version != plan.version:
            if self._memory:
                self._memory.close()
            self._memory = Memory(plan.parameters, plan.dtype, len(plan.shards), plan.version)
        return self._memory

    def _open_later(self, shard: int, plan: Plan) -> None:
        now = time.monotonic()
        if shard in self._opening or now - self._tried.get(shard, -AGAIN_S) < AGAIN_S:
            return
        self._tried[shard] = now

        async def quietly() -> None:
            with contextlib.suppress(StepdError):
                await self._open(shard, plan)

        task = self._opening[shard] = asyncio.create_task(quietly())
        task.add_done_callback(lambda _: self._opening.pop(shard, None))

    async def _open(self, shard: int, plan: Plan) -> None:
        if not can_share():
            raise _cannot(shard, "this system has no memfd_create")
        self._tried[shard] = time.monotonic()
        memory = self._memory_of(plan)
        call = self._session.shard(plan.targets[shard]).share()
        try:
            async with asyncio.timeout(AGREE_S):
                link = await self._agree(shard, plan, memory, call)
        except BaseException as error:
            call.cancel()
            if isinstance(error, grpc.RpcError):
                refused = from_rpc_error(error, target=plan.targets[shard])
                raise _cannot(shard, str(refused)) from error
            if isinstance(error, OSError | TimeoutError | ValueError):
                raise _cannot(shard, str(error) or "no answer") from error
            raise
        self.drop(shard)
        self._links[shard] = link

    async def _agree(self, shard: int, plan: Plan, memory: Memory, call: Any) -> Link:
        offer = shard_pb2.ShareMemoryOffer(run=self._run, member=self._member, layout_version=plan.version)
        await call.write(shard_pb2.ShareMemoryRequest(offer=offer))
        challenge = await _answer(call, "challenge")
        proof = shard_pb2.ShareMemoryProof(
            process=os.getpid(),
            descriptor=memory.descriptor,
            start=memory.start,
            count=memory.count,
            secret=memory.write_secret(shard, challenge.secret),
        )
        await call.write(shard_pb2.ShareMemoryRequest(proof=proof))
        terms = await _answer(call, "terms")
        elements = sum(piece.count for piece in plan.shards[shard])
        parameters = _map(terms.process, terms.parameters, plan.dtype, 0, elements)
        begun = _map(terms.process, terms.journal, np.dtype("<i8"), terms.begun, 1)
        return Link(memory, call, parameters, begun)


def _large(plan: Plan) -> set[int]:
    """Shards that hold enough of the run: below that, sending takes no longer than saying where it lies."""
    return {
        shard
        for shard, slices in enumerate(plan.shards)
        if sum(piece.count for piece in slices) * plan.dtype.itemsize >= SHARED_BYTES_MIN
    }


def _map(process: int, descriptor: int, dtype: np.dtype[Any], start: int, count: int) -> Array:
    """Elements of another process's file, which can only be read."""
    file = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        mapping = mmap.mmap(file, start + count * dtype.itemsize, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    finally:
        os.close(file)
    array: Array = np.frombuffer(mapping, dtype, count, start)
    return array


async def _answer(call: Any, kind: str) -> Any:
    response = await call.read()
    if response is grpc.aio.EOF or response.WhichOneof("message") != kind:
        raise ValueError(f"the shard did not answer with {kind}")
    return getattr(response, kind)


async def _end_of(call: Any) -> None:
    """Wait until the stream ends, however it does."""
    with contextlib.suppress(grpc.RpcError, asyncio.CancelledError):
        await call.read()


def _passes(failure: BaseException) -> bool:
    """Whether it may go better another time: the shard was not asked, or did not answer."""
    cause = failure.__cause__
    return isinstance(cause, TimeoutError) or (
        isinstance(cause, grpc.RpcError) and isinstance(from_rpc_error(cause), Unavailable)
    )


def _cannot(shard: int, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"shard {shard} and this worker cannot share memory: {why}", reason="TRANSPORT_UNAVAILABLE", shard=shard
    )
