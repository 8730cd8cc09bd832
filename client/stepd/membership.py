"""A worker's place in a run: kept by renewing its lease, given up by leaving, had back after it was lost.

A process that is stopped for longer than its lease, or cut off, loses its place. When it goes on it asks for the place
again and gets it under a new incarnation, unless somebody else has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final

import grpc

from stepd.errors import FailedPrecondition, NotFound, StepdError
from stepd.limits import LEASE_RENEWALS
from stepd.observations import Observations
from stepd.retry import passes
from stepd.session import Session
from stepd.status import from_rpc_error
from stepd.v1 import coordinator_pb2, round_pb2

# Between renewals that only carry metrics: a loop of 100 steps a second must not be one of 100 calls.
REPORT_S: Final = 1.0
# Between tries to renew when the coordinator does not answer: it may be back any moment, and the lease runs.
AGAIN_S: Final = 0.5
# What leaving may take. A lease that nobody ended runs out by itself.
LEAVE_S: Final = 5.0


class Rejoined(Exception):
    """The worker is a member under another incarnation now: what was under way begins anew."""


class Membership:
    """One worker's place. Lives in the session's loop, but for `report`.

    Attributes:
        run: the run's name.
        member: as the coordinator named it last.
    """

    def __init__(
        self,
        session: Session,
        request: coordinator_pb2.JoinRunRequest,
        member: round_pb2.Member,
        on_round: Callable[[round_pb2.RoundId, int], None],
        on_rejoined: Callable[[round_pb2.Member, coordinator_pb2.JoinRunResponse], None],
    ) -> None:
        """
        Args:
            session: of the client.
            request: with which it joined.
            member: as the coordinator named it.
            on_round: told, with each renewal, the round that is gathered and which contribution counts.
            on_rejoined: told what the worker was as a member, and what the coordinator says of the new membership.
        """
        self.run = request.run
        self.member = member
        self._session = session
        self._request = request
        self._every = (request.lease.seconds + request.lease.nanos * 1e-9) / LEASE_RENEWALS
        self._on_round = on_round
        self._on_rejoined = on_rejoined
        self._rejoined = asyncio.Event()
        self._metrics: dict[str, float] = {}
        self._observed = Observations()
        self._wake = asyncio.Event()
        self._ended: StepdError | None = None
        self._end = asyncio.Event()
        self._task = asyncio.create_task(self._renew(), name=f"lease of {member.worker}")

    def check(self) -> None:
        """Raise if the membership has ended."""
        if self._ended is not None:
            raise copy.copy(self._ended)  # each raise with a traceback of its own

    async def until_ended(self) -> None:
        """Wait until the membership ends for good, and raise why."""
        await self._end.wait()
        self.check()

    def until_rejoined(self) -> Coroutine[None, None, None]:
        """Wait until the membership is another, and raise Rejoined."""
        return _raise_rejoined(self._rejoined)

    def doubt(self) -> None:
        """The coordinator does not name us as a member: ask now."""
        self._wake.set()
        if self._task.done():  # nobody is left to ask
            self.lost(FailedPrecondition("its lease has run out", reason="NOT_A_MEMBER"))

    def lost(self, error: StepdError) -> StepdError:
        """The error that a worker sees for one of a server; ends the membership if that is what it says."""
        if error.reason == "NOT_A_MEMBER":
            about = {"run": self.run, "worker": self.member.worker, "rank": self.member.rank}
            error = FailedPrecondition(
                f"worker {self.member.worker!r} (rank {self.member.rank}) is no member of run {self.run!r} any more: "
                f"{error}",
                reason="NOT_A_MEMBER",
                **{**error.details, **about},
            )
        elif not isinstance(error, NotFound):
            return error
        self._finish(error)
        return error

    def report(self, metrics: dict[str, float]) -> None:
        """Send values with the next renewal, which comes soon. From any thread."""

        def add() -> None:
            self._metrics |= metrics
            self._observed.add(metrics)
            self._wake.set()

        self._session.loop.post(add)

    def abandon(self) -> None:
        """Let the lease run out. From any thread."""
        self._session.loop.post(self._task.cancel)

    async def leave(self, contributed: round_pb2.RoundId | None) -> None:
        """Give the place up. Without an error if nobody is there to hear it: the lease ends by itself."""
        self._task.cancel()
        if self._ended is not None:
            return
        self._finish(
            FailedPrecondition(
                f"worker {self.member.worker!r} (rank {self.member.rank}) has left run {self.run!r}",
                reason="NOT_A_MEMBER",
                run=self.run,
                worker=self.member.worker,
                rank=self.member.rank,
            )
        )
        request = coordinator_pb2.LeaveRunRequest(run=self.run, member=self.member, contributed=contributed)
        with contextlib.suppress(StepdError, TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                if self._metrics or self._observed.waiting:
                    await self._session.ask("RenewLease", self._renewal(self._metrics))
                await self._session.ask("LeaveRun", request)

    async def _renew(self) -> None:
        pause, sent_at = self._every, 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), pause)
                # Woken to report: not sooner than REPORT_S after the last renewal.
                await asyncio.sleep(min(pause, sent_at + REPORT_S - time.monotonic()))
            self._wake.clear()
            metrics, sent = dict(self._metrics), self._observed.end
            sent_at = time.monotonic()
            try:
                answer = await self._session.coordinator.RenewLease(
                    self._renewal(metrics), timeout=max(self._every, AGAIN_S)
                )
            except grpc.RpcError as failed:
                try:
                    await self._take_back(from_rpc_error(failed, target=self._session.target))
                except StepdError as error:
                    self._finish(self.lost(error))
                    return
                pause = min(self._every, AGAIN_S)
            else:
                pause = self._every
                self._observed.drop_to(sent)
                # Kept until they have arrived; what was reported meanwhile is yet to be sent.
                self._metrics = {name: value for name, value in self._metrics.items() if value is not metrics.get(name)}
                self._on_round(answer.round, answer.counted)

    async def _take_back(self, error: StepdError) -> None:
        """After a renewal that failed: have the place back, if that is what it takes and nobody else has it."""
        if passes(error):
            return
        elif error.reason != "NOT_A_MEMBER":
            raise error
        request = coordinator_pb2.JoinRunRequest()
        request.CopyFrom(self._request)
        request.request_id = uuid.uuid4().hex
        request.again.CopyFrom(self.member)
        try:
            answer: coordinator_pb2.JoinRunResponse = await self._session.ask("JoinRun", request)
        except StepdError as refusal:
            if passes(refusal):
                return  # the next renewal leads here again
            elif refusal.reason == "RUN_FULL":  # others have come, with other ranks
                raise FailedPrecondition(str(refusal), reason="NOT_A_MEMBER", **refusal.details) from refusal
            raise
        before, self.member = self.member, answer.member
        self._observed.begin_anew()
        self._on_rejoined(before, answer)
        rejoined, self._rejoined = self._rejoined, asyncio.Event()
        rejoined.set()

    def _renewal(self, metrics: dict[str, float]) -> Any:
        return coordinator_pb2.RenewLeaseRequest(
            run=self.run,
            member=self.member,
            metrics=metrics,
            observed=self._observed.waiting,
            observed_before=self._observed.before,
        )

    def _finish(self, error: StepdError) -> None:
        if self._ended is None:
            self._ended = error
            self._end.set()


async def _raise_rejoined(event: asyncio.Event) -> None:
    await event.wait()
    raise Rejoined
