"""How long a round may take: as long as somebody works at it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from stepd.errors import DeadlineExceeded, FailedPrecondition, StepdError, Unavailable
from stepd.membership import Membership
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2

# A round that takes longer is looked into: are there workers enough, is a shard away?
LOOK_S: Final = 5.0
LOOK_S_MIN: Final = 0.2


async def look_after(streams: RunStreams, membership: Membership) -> None:
    """Raise when a round has been without enough workers or shards for longer than `retry_for`.

    Waiting for slow peers is no reason: their leases are the coordinator's to end. Does not return otherwise.
    """
    retry_for = streams.session.retry_for
    every = min(LOOK_S, max(retry_for / 4, LOOK_S_MIN))
    since: float | None = None
    while True:
        await asyncio.sleep(every)
        state = await streams.state()
        if state.status == coordinator_pb2.RUN_STATUS_LOST:
            raise FailedPrecondition(f"run {state.spec.name!r} is lost: {state.problem}", reason="RUN_LOST")
        if all(worker.member != membership.member for worker in state.workers):
            membership.doubt()
        if state.status == coordinator_pb2.RUN_STATUS_TRAINING:
            since = None
            continue
        since = time.monotonic() - every if since is None else since
        waited = time.monotonic() - since
        if waited >= retry_for:
            raise _stuck(state, waited, retry_for)


def _stuck(state: coordinator_pb2.RunState, waited: float, retry_for: float) -> StepdError:
    recovering = state.status == coordinator_pb2.RUN_STATUS_RECOVERING
    kind: type[StepdError] = Unavailable if recovering else DeadlineExceeded
    return kind(
        f"run {state.spec.name!r}: round {state.round.round} has waited {waited:.0f} s (retry_for={retry_for:g}): "
        f"{state.problem or 'too few workers'}",
        reason="RUN_RECOVERING" if recovering else None,
        run=state.spec.name,
        round=state.round.round,
        missing=state.problem,
        ranks=[place.rank for place in state.missing],
        workers=len(state.workers),
        waited_s=round(waited, 1),
    )


async def nothing() -> dict[Any, Any]:
    """Where there is nothing to wait for, nor to be read."""
    return {}
