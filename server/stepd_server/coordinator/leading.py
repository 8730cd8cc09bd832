"""One shard led through the rounds of one run: what is wanted of it, and one call that asks for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from stepd.v1 import round_pb2, shard_control_pb2
from stepd_server.coordinator import convert
from stepd_server.coordinator.events import (
    Arrived,
    Earlier,
    Event,
    Finished,
    Gathered,
    Offered,
    Withdrawn,
)

# Every call has a deadline, and after it there is another. A shard that hangs is noticed before: it does not register.
_LEAD_S: Final = 3600.0


class Lead:
    """What is wanted of a shard: a decision to carry out, then a round to gather.

    While nothing has been asked for, more may be wanted. What is wanted instead of what is being answered is for
    another Lead, in another call.

    Attributes:
        asked: the shard has been asked for what is wanted, and has not answered all of it.
        over: another has taken its place.
    """

    def __init__(self, shard: int, run: str, control: Callable[[], Any], tell: Callable[[Event], None]) -> None:
        """
        Args:
            shard: its index.
            run: its name.
            control: gives the stub of the shard's present process.
            tell: takes events. What follows from one may be wanted of this Lead, or end it.
        """
        self.asked = False
        self.over = False
        self._shard = shard
        self._run = run
        self._control = control
        self._tell = tell
        self._finish: round_pb2.Decision | None = None
        self._gather: shard_control_pb2.RoundToGather | None = None
        self._groups = 0
        self._wanted = asyncio.Event()

    def finish(self, decision: round_pb2.Decision) -> None:
        self._finish = decision
        self._wanted.set()

    def gather(self, request: shard_control_pb2.RoundToGather, groups: int) -> None:
        """Args:
        request: the round.
        groups: how many the run has.
        """
        self._gather, self._groups = request, groups
        self._wanted.set()

    def give_way(self) -> round_pb2.Decision | None:
        """Be over. What remains of what was wanted, whatever else is: the decision that is not carried out yet."""
        self.over = True
        return self._finish

    async def lead(self) -> None:
        """Make the call, and go on until it breaks off or is over. After a failure: for what is still wanted."""
        call = self._control().LeadRounds(timeout=_LEAD_S)
        try:
            while not self.over:
                await self._wanted.wait()
                await self._ask(call)
        finally:
            call.cancel()

    async def _ask(self, call: Any) -> None:
        request = shard_control_pb2.LeadRoundsRequest(run=self._run, finish=self._finish, gather=self._gather)
        self.asked = True
        with contextlib.suppress(asyncio.InvalidStateError):  # the call has ended meanwhile; reading says why
            await call.write(request)
        while self.asked and not self.over:
            message = await call.read()
            if message is grpc.aio.EOF:
                raise _broken("the call ended before it was answered")
            self._hear(message)

    def _hear(self, message: shard_control_pb2.LeadRoundsResponse) -> None:
        if message.HasField("gathered"):
            self._tell(self._progress(message.gathered))
            return
        if self._finish is None:
            raise _broken("the call answered what was not asked")
        finished = Finished(self._shard, self._finish.id.round, message.finished)
        self._finish = None
        self._answered()
        self._tell(finished)

    def _progress(self, message: shard_control_pb2.RoundProgress) -> Event:
        """What a shard tells of a round that it gathers."""
        if self._gather is None:
            raise _broken("the call answered what was not asked")
        id_ = convert.id_from_proto(self._gather.id)
        match message.WhichOneof("message"):
            case "sums":
                sums = convert.sums_from_proto(message.sums, self._groups)
                self._gather = None
                self._answered()
                return Gathered(self._shard, id_, sums)
            case "offered":
                return Offered(self._shard, id_, convert.offer_from_proto(message.offered))
            case "earlier":
                return Earlier(self._shard, id_, convert.earlier_from_proto(message.earlier))
            case "withdrawn":
                member = convert.member_from_proto(message.withdrawn.member)
                return Withdrawn(self._shard, id_, member, message.withdrawn.sequence)
        return Arrived(self._shard, id_, convert.member_from_proto(message.arrived))

    def _answered(self) -> None:
        if self._finish is None and self._gather is None:
            self.asked = False
            self._wanted.clear()


def _broken(why: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), why)
