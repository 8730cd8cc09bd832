"""A shard led through rounds: what goes in one message, what is asked for again, and what another call begins with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest

from stepd.v1 import round_pb2, shard_control_pb2
from stepd_server.coordinator.events import Arrived, Event, Finished
from stepd_server.coordinator.leading import Lead
from tests.unit.coordinator_bench import eventually

Request: TypeAlias = shard_control_pb2.LeadRoundsRequest
Response: TypeAlias = shard_control_pb2.LeadRoundsResponse


class Call:
    """One call, as the shard's side of a test sees it."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answers: asyncio.Queue[Response | Exception] = asyncio.Queue()
        self.cancelled = False

    async def write(self, request: Request) -> None:
        self.asked.append(request)

    async def read(self) -> Response:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def cancel(self) -> None:
        self.cancelled = True


class Shard:
    """The stub of a shard.

    Attributes:
        calls: that were made, in order.
        told: what the Lead has told.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.told: list[Event] = []
        self.lead = Lead(7, "digits", lambda: self, self.tell)
        self.then: Callable[[Event], None] = lambda _event: None

    def LeadRounds(self, *, timeout: float) -> Call:  # noqa: N802 (gRPC's)
        assert timeout > 0
        self.calls.append(Call())
        return self.calls[-1]

    def tell(self, event: Event) -> None:
        self.told.append(event)
        self.then(event)

    async def asked(self, count: int) -> list[Request]:
        """What the latest call was asked, once it is so much."""
        await eventually(lambda: bool(self.calls) and len(self.calls[-1].asked) == count)
        return self.calls[-1].asked

    def answer(self, *answers: Response | Exception) -> None:
        for answer in answers:
            self.calls[-1].answers.put_nowait(answer)


def decision(number: int) -> round_pb2.Decision:
    return round_pb2.Decision(id=round_pb2.RoundId(round=number), step=number + 1)


def to_gather(number: int, attempt: int = 0) -> shard_control_pb2.RoundToGather:
    return shard_control_pb2.RoundToGather(id=round_pb2.RoundId(round=number, attempt=attempt))


def finished(step: int) -> Response:
    return Response(finished=step)


def arrived(rank: int) -> Response:
    return Response(gathered=shard_control_pb2.RoundProgress(arrived=round_pb2.Member(rank=rank, incarnation=1)))


SUMS = Response(gathered=shard_control_pb2.RoundProgress(sums=round_pb2.GatheredSums()))


def led(test: Callable[[Shard], Awaitable[None]]) -> None:
    async def main() -> None:
        shard = Shard()
        leading = asyncio.create_task(shard.lead.lead())
        try:
            await test(shard)
        finally:
            leading.cancel()
            await asyncio.wait([leading])

    asyncio.run(main())


def test_a_decision_and_the_next_round_are_one_message_and_all_rounds_one_call() -> None:
    async def test(shard: Shard) -> None:
        shard.lead.gather(to_gather(0), 0)
        await shard.asked(1)
        assert shard.lead.asked
        shard.answer(arrived(0), SUMS)
        await eventually(lambda: not shard.lead.asked)
        shard.lead.finish(decision(0))
        shard.lead.gather(to_gather(1), 0)
        first, second = await shard.asked(2)
        assert (first.HasField("finish"), first.gather) == (False, to_gather(0))
        assert (second.run, second.finish, second.gather) == ("digits", decision(0), to_gather(1))
        shard.answer(finished(1))
        await eventually(lambda: Finished(7, 0, 1) in shard.told)
        assert shard.lead.asked  # for the round
        assert [type(event).__name__ for event in shard.told] == ["Arrived", "Gathered", "Finished"]
        assert len(shard.calls) == 1

    led(test)


def test_what_follows_from_an_answer_is_asked_at_once() -> None:
    """As the decision does from the last shard's sums: it is wanted before `tell` returns."""

    async def test(shard: Shard) -> None:
        def then(event: Event) -> None:
            if not isinstance(event, Arrived):
                shard.lead.finish(decision(0))

        shard.then = then
        shard.lead.gather(to_gather(0), 0)
        await shard.asked(1)
        shard.answer(SUMS)
        _, second = await shard.asked(2)
        assert second.finish == decision(0)

    led(test)


def test_who_gives_way_leaves_the_decision_that_is_not_carried_out() -> None:
    async def test(shard: Shard) -> None:
        shard.lead.finish(decision(3))
        shard.lead.gather(to_gather(4), 0)
        await shard.asked(1)
        assert shard.lead.give_way() == decision(3)
        shard.answer(finished(4), SUMS)
        await eventually(lambda: shard.calls[0].cancelled)
        assert shard.told == [Finished(7, 3, 4)]  # and no sums of a round that is not wanted any more

    led(test)


def test_who_has_carried_all_out_leaves_nothing() -> None:
    async def test(shard: Shard) -> None:
        shard.lead.finish(decision(3))
        await shard.asked(1)
        shard.answer(finished(4))
        await eventually(lambda: not shard.lead.asked)
        assert shard.lead.give_way() is None

    led(test)


@pytest.mark.parametrize(
    "failure",
    [grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()), grpc.aio.EOF],
    ids=["broken", "ended"],
)
def test_after_a_failure_what_is_not_answered_is_asked_again(failure: Any) -> None:
    async def main() -> None:
        shard = Shard()
        shard.lead.finish(decision(0))
        shard.lead.gather(to_gather(1), 0)
        leading = asyncio.create_task(shard.lead.lead())
        await shard.asked(1)
        shard.answer(finished(1), failure)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await leading
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert shard.calls[0].cancelled
        leading = asyncio.create_task(shard.lead.lead())
        (again,) = await _asked_anew(shard)
        assert (again.HasField("finish"), again.gather) == (False, to_gather(1))
        leading.cancel()
        await asyncio.wait([leading])

    asyncio.run(main())


async def _asked_anew(shard: Shard) -> list[Request]:
    await eventually(lambda: len(shard.calls) == 2)
    return await shard.asked(1)
