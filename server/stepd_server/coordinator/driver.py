"""Carries out what the rounds of one run want of the shards, and brings back what becomes of it.

For each shard there is at most one call of each kind under way. A decision and the next gathering are sent as one
message: a shard gathers the next round when it has finished the last, and no round trip lies between. A call that
breaks off is made again for as long as the shard counts as here (every call may be repeated); when it is away, rounds
say what is wanted of it once it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final, TypeAlias

import grpc
import grpc.aio

from stepd.v1 import round_pb2, run_pb2, shard_control_pb2
from stepd_server.coordinator import convert
from stepd_server.coordinator.convert import Senseless
from stepd_server.coordinator.events import (
    Close,
    Closed,
    Commit,
    Event,
    Finish,
    Gather,
    Measure,
    Measured,
    Select,
    SetTimer,
    ShardLost,
    StateCommitted,
    TimeUp,
)
from stepd_server.coordinator.fleet import Fleet
from stepd_server.coordinator.leading import Lead

logger = logging.getLogger(__name__)

Call: TypeAlias = Callable[[], Awaitable[None]]

# Waiting before a broken call is made again: doubled from the one to the other.
_RETRY_S_MIN: Final = 0.02
_RETRY_S_MAX: Final = 0.5
# Every call has a deadline. A shard that hangs is noticed long before, as it stops registering.
_SETTLE_S: Final = 120.0
_MEASURE_S: Final = 120.0
_SELECT_S: Final = 30.0
# Answers that repeating does not change: the shard does not hold what the run counts on.
_FINAL: Final = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class Driver:
    """The shards' side of one run."""

    def __init__(self, run: str, groups: int, fleet: Fleet, tell: Callable[[Event], None]) -> None:
        """Args:
        groups: how many the run has.
        tell: takes events; never called from within the methods below.
        """
        self._run = run
        self._groups = groups
        self._fleet = fleet
        self._tell = tell
        self._leads: dict[int, Lead] = {}
        self._leadings: dict[int, asyncio.Task[None]] = {}
        self._settles: dict[int, asyncio.Task[None]] = {}
        self._commits: dict[int, asyncio.Task[None]] = {}
        self._measures: dict[int, asyncio.Task[None]] = {}
        self._closes: dict[int, asyncio.Task[None]] = {}
        self._selects: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def finish(self, action: Finish) -> None:
        decision = convert.decision_to_proto(action.decision)
        for shard in action.shards:
            self._lead(shard).finish(decision)

    def gather(self, action: Gather) -> None:
        request = convert.gather_to_proto(action)
        self._stop_timer()
        for shard in action.shards:
            # An attempt that starts over has nothing to measure any more, and a shard would refuse to.
            for tasks in (self._measures, self._closes, self._selects):
                if task := tasks.pop(shard, None):
                    task.cancel()
            self._lead(shard).gather(request, self._groups)

    def _lead(self, shard: int) -> Lead:
        """Of whom more may be wanted. What the shard is just being asked for is over then, but for a decision."""
        lead = self._leads.get(shard)
        if lead is None or lead.asked:
            lead = self._lead_anew(shard, lead.give_way() if lead else None)
        return lead

    def _lead_anew(self, shard: int, unfinished: round_pb2.Decision | None) -> Lead:
        lead = self._leads[shard] = Lead(shard, self._run, lambda: self._fleet.shards[shard].control, self._tell)
        if unfinished is not None:
            lead.finish(unfinished)
        self._start(self._leadings, shard, "LeadRounds", lead.lead)
        return lead

    def set_timer(self, action: SetTimer) -> None:
        """Say when the time has passed; a later one takes its place."""
        self._stop_timer()
        over = TimeUp(action.id, action.timer)
        self._timer = asyncio.get_running_loop().call_later(action.seconds, self._tell, over)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    def close(self, action: Close) -> None:
        request = shard_control_pb2.CloseRoundRequest(run=self._run, id=convert.id_to_proto(action.id))
        for shard in action.shards:
            self._start(self._closes, shard, "CloseRound", partial(self._close_once, shard, request))

    def select(self, action: Select) -> None:
        request = convert.select_to_proto(self._run, action)
        for shard in action.shards:
            # Each says all that those before it said.
            self._start(self._selects, shard, "SelectContributors", partial(self._select_once, shard, request))

    def extend(self, groups: int) -> None:
        """The run has so many groups from here on. What is gathered knows less, also when it is asked for again."""
        self._groups = groups
        for shard, lead in list(self._leads.items()):
            self._lead_anew(shard, lead.give_way())

    def settle(self, request: shard_control_pb2.SettleExtensionRequest, shards: Iterable[int]) -> None:
        """Have shards make a committed extension part of the run."""
        for shard in shards:
            self._start(self._settles, shard, "SettleExtension", partial(self._settle_once, shard, request))

    def commit(self, action: Commit, state_id: str, groups: Iterable[run_pb2.GroupSpec]) -> None:
        request = shard_control_pb2.CommitStateRequest(
            run=self._run, state_id=state_id, round=action.round, groups=groups
        )
        for shard in action.shards:
            # What is measured was meant for the old state.
            if task := self._measures.pop(shard, None):
                task.cancel()
            self._start(self._commits, shard, "CommitState", partial(self._commit_once, shard, request))

    def measure(self, action: Measure) -> None:
        request = shard_control_pb2.MeasureRoundRequest(run=self._run, decision=convert.decision_to_proto(action.draft))
        for shard in action.shards:
            self._start(self._measures, shard, "MeasureRound", partial(self._measure_once, shard, request))

    def abandon(self, shard: int) -> None:
        """Stop calling a shard that is away."""
        if lead := self._leads.pop(shard, None):
            lead.give_way()
        calls = (self._leadings, self._settles, self._commits, self._measures, self._closes, self._selects)
        for tasks in calls:
            if task := tasks.pop(shard, None):
                task.cancel()

    async def stop(self) -> None:
        self._stop_timer()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, tasks: dict[int, asyncio.Task[None]], shard: int, name: str, call: Call) -> None:
        older = tasks.get(shard)
        # What leads to this action may be told from within the older call: that one is at its end.
        if older and older is not asyncio.current_task():
            older.cancel()
        task = tasks[shard] = asyncio.create_task(self._insist(shard, name, call), name=f"{name} on shard {shard}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("run %r: %s broke off", self._run, task.get_name(), exc_info=error)

    async def _insist(self, shard: int, name: str, call: Call) -> None:
        """Make a call until it is answered for good."""
        clock = asyncio.get_running_loop().time
        pause = _RETRY_S_MIN
        while True:
            begun = clock()
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                about = f"{name} of run {self._run!r} on shard {shard}: {error.code().name}: {error.details()}"
                if error.code() in _FINAL:
                    logger.error("%s", about)  # noqa: TRY400 (its traceback says nothing)
                    return self._tell(ShardLost(shard, f"cannot go on: {error.details()}"))
                logger.info("%s; again in %g s", about, pause)
            except Senseless as error:
                return self._tell(ShardLost(shard, f"gave sums that make no sense: {error}"))
            if clock() - begun > _RETRY_S_MAX:
                pause = _RETRY_S_MIN  # it was answered for a while
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_S_MAX)

    async def _close_once(self, shard: int, request: shard_control_pb2.CloseRoundRequest) -> None:
        response = await self._fleet.shards[shard].control.CloseRound(request, timeout=_SELECT_S)
        begun = tuple(map(convert.member_from_proto, response.begun))
        self._tell(Closed(shard, convert.id_from_proto(request.id), begun))

    async def _select_once(self, shard: int, request: shard_control_pb2.SelectContributorsRequest) -> None:
        await self._fleet.shards[shard].control.SelectContributors(request, timeout=_SELECT_S)

    async def _settle_once(self, shard: int, request: shard_control_pb2.SettleExtensionRequest) -> None:
        await self._fleet.shards[shard].control.SettleExtension(request, timeout=_SETTLE_S)

    async def _commit_once(self, shard: int, request: shard_control_pb2.CommitStateRequest) -> None:
        await self._fleet.shards[shard].control.CommitState(request, timeout=_SETTLE_S)
        self._tell(StateCommitted(shard))

    async def _measure_once(self, shard: int, request: shard_control_pb2.MeasureRoundRequest) -> None:
        id_ = convert.id_from_proto(request.decision.id)
        call = self._fleet.shards[shard].control.MeasureRound(request, timeout=_MEASURE_S)
        messages = [message async for message in call]
        self._tell(Measured(shard, id_, convert.measures_from_proto(messages)))
