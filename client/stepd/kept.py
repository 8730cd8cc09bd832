"""Calls that are kept open from one step to the next, for beginning and ending a call takes longer than a message."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio

from stepd.session import ShardCalls
from stepd.v1 import shard_pb2


class KeptCalls:
    """A worker's calls to which each message is answered by one, at most one kept for each shard.

    A call on which a question was not answered is not kept, whatever the reason: what it may still answer is nobody's.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[ShardCalls, Any]] = {}
        self._closed = False

    async def push_and_pull(
        self, shard: int, calls: ShardCalls, request: bytes, within: float
    ) -> shard_pb2.PushAndPullResponse:
        """Raises AioRpcError.

        Args:
            shard: which.
            calls: where it is now.
            request: to be sent.
            within: seconds to wait for the answer.
        """
        call = self._take(shard, calls) or calls.push_and_pull()
        answered = False
        try:
            async with asyncio.timeout(within):
                with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):  # it is over; reading says why
                    await call.write(request)
                answer = await call.read()
            if not isinstance(answer, shard_pb2.PushAndPullResponse):
                raise _failed(grpc.StatusCode.UNAVAILABLE, "the call ended before it was answered")
            answered = not self._closed and shard not in self._kept
        except TimeoutError:
            raise _failed(grpc.StatusCode.DEADLINE_EXCEEDED, f"after {within:g} s") from None
        finally:
            if answered:
                self._kept[shard] = (calls, call)
            else:
                call.cancel()
        return answer

    def close(self) -> None:
        """End what is kept. From the session's loop."""
        self._closed = True
        for _, call in self._kept.values():
            call.cancel()
        self._kept.clear()

    def _take(self, shard: int, calls: ShardCalls) -> Any:
        """The call kept to a shard, if that is still where it goes; it may have ended meanwhile."""
        kept, call = self._kept.pop(shard, (calls, None))
        if call is None or (kept is calls and not call.done()):
            return call
        call.cancel()
        return None


def _failed(code: grpc.StatusCode, why: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), why)
