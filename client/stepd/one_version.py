"""Reading parameters from several shards so that all are of one version, while rounds go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from typing import Any, Protocol

from stepd.errors import Aborted
from stepd.retry import PAUSE_S_MIN, Patience
from stepd.session import together
from stepd.v1 import shard_pb2

OnHeader = Callable[[shard_pb2.PullHeader], None]
Headers = Coroutine[Any, Any, shard_pb2.PullHeader]


class Pull(Protocol):
    """Reads from one shard; asks again after a failure, if it may."""

    def __call__(
        self, shard: int, request: shard_pb2.PullRequest, on_header: OnHeader, /, *, again: bool
    ) -> Headers: ...


async def one_version(
    pull: Pull, shards: Sequence[int], request: shard_pb2.PullRequest, on_header: OnHeader, patience: Patience
) -> dict[int, shard_pb2.PullHeader]:
    """What all shards hold, of one version.

    The first shard names the version, and keeps it while it is read; the others are asked for that one. So nobody who
    holds a version waits for a later one.
    """
    first, *others = shards
    newest: int | None = None
    for tries in count():
        patience.begin()
        wanted = None if tries % 2 == 0 else newest  # one that was named by a shard which had it before the others
        request.sent_away = tries
        named: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def name(step: int | None = wanted, named: asyncio.Future[int] = named) -> shard_pb2.PullHeader:
            def on_first(header: shard_pb2.PullHeader) -> None:
                on_header(header)
                if not named.done():
                    named.set_result(header.step)

            return await pull(first, asking_for(request, step), on_first, again=False)

        async def follow(shard: int, named: asyncio.Future[int] = named) -> shard_pb2.PullHeader:
            return await pull(shard, asking_for(request, await asyncio.shield(named)), ignore, again=True)

        try:
            found = await together((name(), *(follow(shard) for shard in others)))
            steps = {reply.step for reply in found}
            if len(steps) == 1:
                return dict(zip(shards, found, strict=True))
            # The first was asked anew when its connection broke, and had gone on by then.
            newest = max(steps)
        except Aborted as error:
            if error.reason != "VERSION_PASSED":
                raise
            newest = max(newest or 0, int(str(error.details.get("step", 0))))
            await asyncio.sleep(min(patience.pause(error), PAUSE_S_MIN))
    raise AssertionError  # count does not end


def ignore(_: shard_pb2.PullHeader) -> None:
    """Headers are looked at when all are there."""


def asking_for(request: shard_pb2.PullRequest, step: int | None) -> shard_pb2.PullRequest:
    """The request, for this version if one is given."""
    own = shard_pb2.PullRequest()
    own.CopyFrom(request)
    if step is not None:
        own.step = step
    return own
