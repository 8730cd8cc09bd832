"""How a shard makes itself known: the one call that it makes to the coordinator, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Self

import grpc.aio

from stepd.errors import StepdError
from stepd.limits import SHARD_INTERVAL_S, SHARD_TIMEOUT_S
from stepd.status import from_rpc_error
from stepd.v1 import coordinator_pb2, coordinator_pb2_grpc

__all__ = ["Registration"]

logger = logging.getLogger(__name__)

# Waiting while the coordinator is away: doubled from the one to the other. The upper one is what a fleet loses at most
# after its coordinator is back.
RETRY_S_MIN: Final = 0.1
RETRY_S_MAX: Final = SHARD_INTERVAL_S
# An answer that takes longer comes too late: the coordinator takes us for dead by then.
CALL_TIMEOUT_S: Final = SHARD_TIMEOUT_S / 2


class Registration:
    """Registers a shard every interval that the coordinator wants, for as long as the `async with` block lasts.

    The channel is closed with it.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        index: int,
        target: str,
        instance: str,
        held_runs: Callable[[], Iterable[coordinator_pb2.HeldRun]],
        on_change: Callable[[bool], Awaitable[None]],
    ) -> None:
        """Nothing is sent yet.

        Args:
            channel: to the coordinator.
            index: the shard's.
            target: where workers and the coordinator reach it.
            instance: new for every start of the process.
            held_runs: what it holds; asked for before every call.
            on_change: called with whether the coordinator knows us, when that changes.
        """
        self._channel = channel
        self._coordinator: Any = coordinator_pb2_grpc.CoordinatorStub(channel)
        self._index = index
        self._target = target
        self._instance = instance
        self._held_runs = held_runs
        self._on_change = on_change
        self._trouble: str | None = "not yet registered"
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="registration")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._channel.close(None)

    async def _run(self) -> None:
        retry_s = RETRY_S_MIN
        while True:
            try:
                pause_s = await self._register()
            except StepdError as error:
                await self._note(f"{error.reason}: {error}")
                pause_s, retry_s = retry_s, min(2 * retry_s, RETRY_S_MAX)
            except Exception:
                # A shard that no longer registers would look dead for ever, and nobody would know why.
                logger.exception("cannot register")
                await self._note("internal error")
                pause_s = RETRY_S_MAX
            else:
                await self._note(None)
                retry_s = RETRY_S_MIN
            await asyncio.sleep(pause_s)

    async def _register(self) -> float:
        """Register once. Returns the seconds until the next time."""
        request = coordinator_pb2.RegisterShardRequest(
            index=self._index, target=self._target, instance=self._instance, pid=os.getpid(), runs=self._held_runs()
        )
        try:
            response = await self._coordinator.RegisterShard(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise from_rpc_error(error, target="the coordinator") from error
        wanted_s: float = response.interval.ToTimedelta().total_seconds()
        return min(max(wanted_s, RETRY_S_MIN), SHARD_TIMEOUT_S)

    async def _note(self, trouble: str | None) -> None:
        """Say it once when things change, not every second."""
        before, self._trouble = self._trouble, trouble
        if (before is None) != (trouble is None):
            await self._on_change(trouble is None)
        if trouble is None and before is not None:
            logger.info("registered as %s", self._target)
        elif trouble is not None and trouble.split(":")[0] != (before or "").split(":")[0]:
            logger.warning("the coordinator does not know this shard, trying on: %s", trouble)
