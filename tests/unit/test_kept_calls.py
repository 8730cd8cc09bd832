"""Calls that stay open from one step to the next, against a server of grpc.aio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from stepd.kept import KeptCalls
from stepd.session import ShardCalls
from stepd.v1 import shard_pb2
from tests.patience import PATIENCE_S

REQUEST = b"question"


class Shard:
    """Attributes:
    begun: calls.
    open: calls that have not ended.
    behave: what is done with a question: nothing, or what ends or holds up the call.
    answers: questions; otherwise it ends the call without a word.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.open = 0
        self.answers = True
        self._changed = asyncio.Condition()
        self.behave: Callable[[Any], Awaitable[object]] = lambda _: asyncio.sleep(0)

    async def push_and_pull(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.begun += 1
        await self._count(1)
        try:
            async for raw in requests:
                assert raw == REQUEST
                if not self.answers:
                    return
                await self.behave(context)
                receipt = shard_pb2.PushResponse(step=self.begun)
                yield shard_pb2.PushAndPullResponse(receipt=receipt).SerializeToString()
        finally:
            await self._count(-1)

    async def until_open(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.open == count)

    async def _count(self, change: int) -> None:
        async with self._changed:
            self.open += change
            self._changed.notify_all()


class Calls:
    """Kept calls to one shard."""

    def __init__(self, calls: ShardCalls, shard: Shard) -> None:
        self.kept = KeptCalls()
        self.calls = calls
        self.shard = shard

    async def ask(self, *, within: float = PATIENCE_S) -> int:
        """Which call it was that was answered."""
        return (await self.kept.push_and_pull(0, self.calls, REQUEST, within)).receipt.step


def with_a_shard(test: Callable[[Calls], Awaitable[None]]) -> None:
    async def run() -> None:
        shard, server = Shard(), grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(shard.push_and_pull)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("stepd.v1.Shard", {"PushAndPull": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(PATIENCE_S):
            await test(Calls(ShardCalls(channel), shard))
        await server.stop(None)

    asyncio.run(run())


def test_one_call_serves_all_steps_and_ends_when_it_is_closed() -> None:
    async def test(calls: Calls) -> None:
        assert [await calls.ask() for _ in range(3)] == [1, 1, 1]
        calls.kept.close()
        await calls.shard.until_open(0)

    with_a_shard(test)


def test_after_an_error_there_is_another_call() -> None:
    async def test(calls: Calls) -> None:
        assert await calls.ask() == 1
        calls.shard.behave = lambda context: context.abort(grpc.StatusCode.ABORTED, "not now")
        with pytest.raises(grpc.aio.AioRpcError, match="not now") as caught:
            await calls.ask()
        assert caught.value.code() is grpc.StatusCode.ABORTED
        calls.shard.behave = lambda _: asyncio.sleep(0)
        assert await calls.ask() == 2

    with_a_shard(test)


def test_a_call_that_has_ended_meanwhile_is_not_tried() -> None:
    async def test(calls: Calls) -> None:
        assert await calls.ask() == 1
        ended = asyncio.Event()
        _, call = calls.kept._kept[0]
        call.add_done_callback(lambda _: ended.set())
        calls.kept._kept[0][1].cancel()
        await ended.wait()
        assert await calls.ask() == 2

    with_a_shard(test)


def test_a_shard_that_is_elsewhere_now_is_asked_there() -> None:
    async def test(calls: Calls) -> None:
        assert await calls.ask() == 1
        async with grpc.aio.insecure_channel("127.0.0.1:1") as nobody:
            moved = await asyncio.gather(
                calls.kept.push_and_pull(0, ShardCalls(nobody), REQUEST, PATIENCE_S), return_exceptions=True
            )
        assert isinstance(moved[0], grpc.aio.AioRpcError)
        await calls.shard.until_open(0)

    with_a_shard(test)


def test_nobody_waits_longer_than_asked_and_a_late_answer_is_nobodys() -> None:
    async def test(calls: Calls) -> None:
        held = asyncio.Event()
        calls.shard.behave = lambda _: held.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.ask(within=0.01)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.set()
        assert await calls.ask() == 2

    with_a_shard(test)


def test_who_is_cancelled_ends_its_call() -> None:
    async def test(calls: Calls) -> None:
        calls.shard.behave = lambda _: asyncio.Event().wait()
        asking = asyncio.create_task(calls.ask())
        await calls.shard.until_open(1)
        asking.cancel()
        await calls.shard.until_open(0)
        assert asking.cancelled()

    with_a_shard(test)


def test_a_call_that_ends_without_an_answer_is_no_answer() -> None:
    async def test(calls: Calls) -> None:
        calls.shard.answers = False
        with pytest.raises(grpc.aio.AioRpcError, match="before it was answered") as caught:
            await calls.ask()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    with_a_shard(test)
