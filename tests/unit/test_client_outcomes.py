"""What becomes of a contribution whose round went otherwise than it looked when it was sent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import stepd
from stepd.errors import Aborted
from stepd.v1 import round_pb2, shard_pb2
from tests.patience import PATIENCE_S
from tests.unit.fake_fleet import SIZE, FakeFleet, decided, receipt

GRAD = {"w": np.full(2 * SIZE, 5, np.float32)}
ACCEPTED, DUPLICATE = shard_pb2.RECEIPT_STATUS_ACCEPTED, shard_pb2.RECEIPT_STATUS_DUPLICATE


@pytest.fixture
def fleet() -> Iterator[FakeFleet]:
    fleet = FakeFleet(2)
    yield fleet
    fleet.close()


@pytest.fixture
def worker(fleet: FakeFleet) -> Iterator[stepd.Worker]:
    with stepd.connect(fleet.target, retry_for=PATIENCE_S) as client, client.run("run").join(lease=1.0) as worker:
        yield worker


def of_nobody(round_: int) -> shard_pb2.PullHeader:
    """The header of parameters after a round that was over for want of workers."""
    header = decided(round_, round_pb2.OUTCOME_SKIPPED, step=round_)
    del header.decision.members[:]
    return header


@pytest.mark.parametrize("pushed", [False, True])
def test_what_was_sent_for_a_round_of_nobody_is_for_the_next(
    fleet: FakeFleet, worker: stepd.Worker, *, pushed: bool
) -> None:
    """Nothing has changed: nobody has to compute it again, and who was told that it is there finds it counted."""
    for shard in fleet.shards:
        shard.pull = lambda request: ((decided if request.round else of_nobody)(request.round), 0.0)
    if pushed:
        assert worker.push(GRAD).counts
        fleet.now = round_pb2.RoundId(round=1)
        renewals = len(fleet.renewals)
        deadline = time.monotonic() + PATIENCE_S
        while len(fleet.renewals) <= renewals + 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        worker.pull()
    else:
        result = worker.step(GRAD)
        assert (result.receipt.status, result.receipt.round, result.skipped) == ("accepted", 1, False)
    for shard in fleet.shards:
        assert shard.pushed == [(0, 0, 5.0), (1, 0, 5.0)]
    assert worker.step(GRAD).receipt.round == 2


@pytest.mark.parametrize(("status", "word"), [(DUPLICATE, "accepted"), (shard_pb2.RECEIPT_STATUS_LATE, "late")])
def test_who_has_missed_rounds_asks_the_shards_what_became_of_its_own(
    fleet: FakeFleet, worker: stepd.Worker, status: int, word: str
) -> None:
    """What they said when it came is from before the round was decided: it may have started over without it."""
    for shard in fleet.shards:
        shard.pull = lambda request: (decided(max(request.round, 3)), 0.0)
    fleet.state.last_decision.CopyFrom(decided(3).decision)
    answers = iter([ACCEPTED, status])
    fleet.shards[0].push = lambda header: receipt(header, next(answers, ACCEPTED))
    assert worker.step(GRAD).receipt.status == word
    assert next(answers, None) is None
    assert worker.step(GRAD).receipt.round == 4


def test_who_is_not_in_its_rounds_decision_does_not_count(fleet: FakeFleet, worker: stepd.Worker) -> None:
    """Whatever a receipt said in an attempt that started over meanwhile: it was stopped, and lost for the last."""

    def pull(request: shard_pb2.PullRequest) -> Any:
        header = decided(request.round)
        if request.round == 0:
            del header.decision.members[:]
            header.decision.members.add(worker="bob", incarnation=1, rank=1)
        return header, 0.0

    for shard in fleet.shards:
        shard.pull = pull
    first, second = worker.step(GRAD).receipt, worker.step(GRAD).receipt
    assert (first.status, first.counts, first.round) == ("late", False, 0)
    assert (second.status, second.counts, second.round) == ("accepted", True, 1)


@pytest.mark.parametrize("round_", [0, 2])
def test_what_was_for_one_round_is_for_any_once_turns_are_taken(
    fleet: FakeFleet, worker: stepd.Worker, round_: int
) -> None:
    """The policy has changed, and others may have had turns since."""
    first = fleet.shards[0]
    named = list[bool]()

    def push(header: shard_pb2.PushHeader) -> Any:
        named.append(header.HasField("id"))
        if named[-1]:
            return Aborted("again", reason="ROUND_RESTARTED", round=round_, attempt=0, in_turn="1")
        return shard_pb2.PushResponse(status=ACCEPTED, id=round_pb2.RoundId(round=3), in_turn=True)

    first.push = push
    fleet.shards[1].push = lambda header: shard_pb2.PushResponse(
        status=ACCEPTED, id=header.id if header.HasField("id") else round_pb2.RoundId(round=3), in_turn=True
    )
    receipt = worker.push(GRAD)
    assert (receipt.status, receipt.round) == ("accepted", 3)
    assert named == [True, False]


def test_one_shard_that_refuses_it_is_enough(fleet: FakeFleet, worker: stepd.Worker) -> None:
    """The others may never hear of it: who decided so has died, and by another policy there is nothing to refuse."""

    def push(header: shard_pb2.PushHeader) -> Any:
        if header.HasField("id"):
            return Aborted("again", reason="ROUND_RESTARTED", round=0, attempt=0, in_turn="1")
        return shard_pb2.PushResponse(status=shard_pb2.RECEIPT_STATUS_STALE, in_turn=True)

    fleet.shards[0].push = push
    fleet.shards[1].push = lambda _: Aborted("nobody has it all", reason="ROUND_PENDING")
    assert worker.push(GRAD).status == "stale"


def test_in_turn_a_push_knows_what_became_of_it(fleet: FakeFleet, worker: stepd.Worker) -> None:
    """Every shard had it, the round started over, another's turn came first: now it is too old."""

    def push(header: shard_pb2.PushHeader) -> shard_pb2.PushResponse:
        if header.HasField("id"):
            return shard_pb2.PushResponse(status=ACCEPTED, id=header.id, in_turn=True)
        headers.append(header)
        if len(headers) <= len(fleet.shards):
            return shard_pb2.PushResponse(status=ACCEPTED, id=round_pb2.RoundId(round=1), in_turn=True)
        return shard_pb2.PushResponse(status=shard_pb2.RECEIPT_STATUS_STALE, in_turn=True)

    def pull(request: shard_pb2.PullRequest) -> Any:
        if request.round == 1:
            return Aborted("again", reason="ROUND_RESTARTED", round=1, attempt=1, in_turn="1")
        return decided(request.round), 0.0

    headers: list[shard_pb2.PushHeader] = []
    for shard in fleet.shards:
        shard.push, shard.pull = push, pull
    assert worker.step(GRAD).receipt.counts
    receipt = worker.push(GRAD)
    assert (receipt.status, receipt.counts, receipt.round) == ("stale", False, -1)
    assert [header.sequence for header in headers] == [2] * 2 * len(fleet.shards)
