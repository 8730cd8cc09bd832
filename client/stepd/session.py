"""What a client shares with its runs and workers: the loop, the channels, and calls to the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

import grpc

from stepd.channel import TLS, open_channel
from stepd.limits import AT_ONCE_BYTES_MAX, MIB, WAIT_S
from stepd.loop import Loop
from stepd.retry import Patience, persist
from stepd.v1 import coordinator_pb2, coordinator_pb2_grpc, shard_pb2

T = TypeVar("T")

# The slowest link that a step is worth waiting for; deadlines of bulk calls allow for it.
SLOWEST_BYTES_PER_S: Final = MIB
# For a look at where the shards are now, after a connection was lost.
REFRESH_S: Final = 5.0
# After which something that was begun on the servers is taken back by further calls. Not when the loop itself has ended
# and closes its coroutines (GeneratorExit): nothing is left that could call, and the coordinator forgets it by itself.
UNDONE_AFTER: Final = (Exception, asyncio.CancelledError)


class ShardCalls:
    """The bulk calls of one shard. Chunks stay bytes, written and read by stepd.wire."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.push: Any = channel.stream_unary(
            "/stepd.v1.Shard/Push", response_deserializer=shard_pb2.PushResponse.FromString
        )
        self.pull: Any = channel.unary_stream(
            "/stepd.v1.Shard/Pull", request_serializer=shard_pb2.PullRequest.SerializeToString
        )
        self.push_and_pull: Any = channel.stream_stream(
            "/stepd.v1.Shard/PushAndPull", response_deserializer=shard_pb2.PushAndPullResponse.FromString
        )
        self.stage: Any = channel.stream_unary(
            "/stepd.v1.Shard/StageState", response_deserializer=shard_pb2.StageStateResponse.FromString
        )
        self.load: Any = channel.stream_unary(
            "/stepd.v1.Shard/LoadParameters", response_deserializer=shard_pb2.LoadParametersResponse.FromString
        )
        self.share: Any = channel.stream_stream(
            "/stepd.v1.Shard/ShareMemory",
            request_serializer=shard_pb2.ShareMemoryRequest.SerializeToString,
            response_deserializer=shard_pb2.ShareMemoryResponse.FromString,
        )


class Session:
    """Connections of one client.

    Attributes:
        target: the coordinator's.
        timeout: seconds that one try of a call may take, waiting for a round apart.
        retry_for: seconds for which a call is tried again.
        transport: of gradients and parameters: "auto", "grpc" or "shm".
        loop: everything below runs in it.
        at_once_bytes: what is no larger goes to a shard and back in one call.
    """

    at_once_bytes = AT_ONCE_BYTES_MAX

    def __init__(
        self,
        target: str,
        *,
        token: str | None,
        tls: TLS | None,
        timeout: float,
        retry_for: float,
        transport: str = "auto",
    ) -> None:
        self.target = target
        self.transport = transport
        self.timeout = timeout
        self.retry_for = retry_for
        self._token = token
        self._tls = tls
        self._shards: dict[str, ShardCalls] = {}
        self._channels: list[grpc.aio.Channel] = []
        self.loop = Loop(f"stepd {target}", _closing(self._channels))
        # Closes what the user forgot to close, at the end of the program at the latest.
        self._finalizer = weakref.finalize(self, self.loop.close)
        try:
            self.coordinator: Any = self.loop.run(self._open_coordinator())
        except BaseException:
            self.close()
            raise

    def run(self, coroutine: Coroutine[Any, Any, T], meanwhile: Callable[[], object] | None = None) -> T:
        """Run a coroutine of this session from the user's thread, and something there meanwhile."""
        return self.loop.run(coroutine, meanwhile)

    def close(self) -> None:
        self._finalizer()

    def patience(self, what: str, target: str | None = None) -> Patience:
        return Patience(what, target or self.target, self.retry_for)

    async def ask(self, method: str, request: Any) -> Any:
        """One call to the coordinator, tried again until it is answered or `retry_for` has passed."""
        call = getattr(self.coordinator, method)
        return await persist(lambda: call(request, timeout=self.timeout), self.patience(method), self.target)

    def shard(self, target: str) -> ShardCalls:
        """The calls of the shard at `target`. In the loop only."""
        if target not in self._shards:
            self._shards[target] = ShardCalls(self._open(target))
        return self._shards[target]

    def bulk_timeout(self, size: int) -> float:
        """Seconds that one try of a stream of so many bytes may take, waiting for its round included."""
        return self.timeout + WAIT_S + size / SLOWEST_BYTES_PER_S

    async def shard_targets(self) -> dict[int, str]:
        """Where the shards are now, by index; empty if the coordinator does not say."""
        with contextlib.suppress(grpc.RpcError):
            fleet = await self.coordinator.GetFleet(
                coordinator_pb2.GetFleetRequest(), timeout=min(self.timeout, REFRESH_S)
            )
            return {shard.index: shard.target for shard in fleet.shards if shard.target}
        return {}

    async def _open_coordinator(self) -> Any:
        return coordinator_pb2_grpc.CoordinatorStub(self._open(self.target))

    def _open(self, target: str) -> grpc.aio.Channel:
        channel = open_channel(target, token=self._token, tls=self._tls)
        self._channels.append(channel)
        return channel


def _closing(channels: list[grpc.aio.Channel]) -> Callable[[], Awaitable[None]]:
    """What ends the channels; holds nothing of the session, so that this can be collected."""

    async def close() -> None:
        for channel in channels:
            await channel.close()

    return close


async def together(work: Iterable[Coroutine[Any, Any, T]], guards: Iterable[Coroutine[Any, Any, None]] = ()) -> list[T]:
    """Run coroutines at once and give their results in order. The first error ends all of them and is raised.

    Args:
        work: what has to be done.
        guards: run beside it until it is done; their errors count, their end does not.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    beside = [asyncio.ensure_future(coroutine) for coroutine in guards]
    pending: set[asyncio.Future[Any]] = {*tasks, *beside}
    ended = False
    try:
        while not all(task.done() for task in tasks):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                future.result()
        return [task.result() for task in tasks]
    except GeneratorExit:
        ended = True  # the loop has, and closes its coroutines: nobody can be told, or waited for
        raise
    finally:
        if not ended:
            for future in (*tasks, *beside):
                future.cancel()
            await asyncio.gather(*tasks, *beside, return_exceptions=True)
