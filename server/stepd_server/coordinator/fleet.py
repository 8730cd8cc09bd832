"""The fleet's shards: who has registered, who still answers, and the connections to them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio

from stepd.errors import FailedPrecondition, Unavailable
from stepd.limits import SHARD_TIMEOUT_S
from stepd.settings import refuse
from stepd.status import from_rpc_error
from stepd.targets import parse_target
from stepd.v1 import coordinator_pb2, shard_control_pb2_grpc

logger = logging.getLogger(__name__)

Dial = Callable[[str], grpc.aio.Channel]

_INSTANCE_CHARS_MAX: Final = 128
# Instances of an index that were replaced: the last few, as an old process is gone within seconds.
_REPLACED_MAX: Final = 16


@dataclass
class Shard:
    """One index of the fleet.

    Attributes:
        ready: it has registered and still answers.
        heard: when it last did, on the fleet's clock.
        control: how to lead it; None until it has registered.
        replaced: earlier instances.
    """

    index: int
    target: str = ""
    instance: str = ""
    pid: int = 0
    ready: bool = False
    heard: float = 0.0
    control: Any = None
    channel: grpc.aio.Channel | None = None
    replaced: list[str] = field(default_factory=list)


class Fleet:
    """All shards, by index."""

    def __init__(self, shards: int, dial: Dial, clock: Callable[[], float]) -> None:
        self.shards: Final = [Shard(index) for index in range(shards)]
        self._dial = dial
        self._clock = clock
        self._closing: set[asyncio.Task[None]] = set()

    def register(self, request: coordinator_pb2.RegisterShardRequest) -> bool:
        """Take a shard's word; whether it was away, or is another process than before."""
        self._check(request)
        shard = self.shards[request.index]
        changed = request.instance != shard.instance
        back = changed or not shard.ready
        if changed and shard.instance:
            shard.replaced = [*shard.replaced, shard.instance][-_REPLACED_MAX:]
        if request.target != shard.target or changed:
            self._connect(shard, request.target)
        shard.instance, shard.pid = request.instance, request.pid
        shard.ready, shard.heard = True, self._clock()
        if back:
            logger.info("shard %d is here: %s, process %d", shard.index, shard.target, shard.pid)
        return back

    def _check(self, request: coordinator_pb2.RegisterShardRequest) -> None:
        thing = f"shard {request.index}"
        if request.index >= len(self.shards):
            refuse(thing, "index", request.index, f"from 0 to {len(self.shards) - 1}: the fleet has {len(self.shards)}")
        if not 1 <= len(request.instance) <= _INSTANCE_CHARS_MAX:
            refuse(thing, "instance", request.instance, f"1 to {_INSTANCE_CHARS_MAX} characters")
        parse_target(request.target)
        if request.instance in self.shards[request.index].replaced:
            # Two processes of one index, as after the forced deletion of a pod: the one that came last is the shard.
            raise FailedPrecondition(
                f"another process has taken the place of shard {request.index}",
                index=request.index,
                instance=request.instance,
            )

    def _connect(self, shard: Shard, target: str) -> None:
        if shard.channel is not None:
            self._spawn(shard.channel.close())
        shard.target = target
        shard.channel = self._dial(target)
        shard.control = shard_control_pb2_grpc.ShardControlStub(shard.channel)

    def _spawn(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def expire(self) -> list[int]:
        """Shards that have not been heard of for too long, each once."""
        now = self._clock()
        silent = [shard for shard in self.shards if shard.ready and now - shard.heard >= SHARD_TIMEOUT_S]
        for shard in silent:
            shard.ready = False
            logger.warning("shard %d (%s) has not been heard of for %g s", shard.index, shard.target, SHARD_TIMEOUT_S)
        return [shard.index for shard in silent]

    def make_up_for(self, seconds: float) -> None:
        """Nobody could be heard of for so long: shards have that much longer to be heard of."""
        for shard in self.shards:
            shard.heard += seconds

    def check_complete(self) -> None:
        """Raise Unavailable FLEET_INCOMPLETE, naming the shards that are not here."""
        missing = [shard.index for shard in self.shards if not shard.ready]
        if missing:
            raise Unavailable(
                f"shards {', '.join(map(str, missing))} of {len(self.shards)} have yet to register",
                reason="FLEET_INCOMPLETE",
                missing=missing,
                shards=len(self.shards),
            )

    @property
    def targets(self) -> list[str]:
        """Where workers reach the shards, by index; empty for those that were never seen."""
        return [shard.target for shard in self.shards]

    async def call(self, index: int, method: str, request: Any, timeout_s: float) -> Any:
        """One call to one shard, with errors as ours."""
        shard = self.shards[index]
        if shard.control is None:
            raise Unavailable(f"shard {index} has yet to register", reason="FLEET_INCOMPLETE", missing=[index])
        try:
            return await getattr(shard.control, method)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, target=f"shard {index} ({shard.target})") from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not we were cancelled but the call, with its connection: another process has taken the shard's place.
            raise Unavailable(f"shard {index} has started anew meanwhile", shard=index) from None

    async def call_all(self, method: str, request: Any, timeout_s: float) -> list[Any]:
        """The same call to every shard at once. Waits for all; then raises the first error, by index."""
        calls = (self.call(shard.index, method, request, timeout_s) for shard in self.shards)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return list(answers)

    async def close(self) -> None:
        for shard in self.shards:
            if shard.channel is not None:
                await shard.channel.close()
        await asyncio.gather(*self._closing)
