"""A worker's side of rounds, against servers that misbehave as told."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import stepd
from stepd.errors import Aborted, FailedPrecondition, StepdError, Unavailable
from stepd.session import Session
from stepd.v1 import coordinator_pb2, round_pb2, shard_pb2
from tests.patience import PATIENCE_S
from tests.unit.fake_fleet import MEMBER, SIZE, FakeFleet, FakeShard, decided, receipt

GRAD = {"w": np.full(2 * SIZE, 5, np.float32)}
ACCEPTED, DUPLICATE = shard_pb2.RECEIPT_STATUS_ACCEPTED, shard_pb2.RECEIPT_STATUS_DUPLICATE


@pytest.fixture(params=[0, 1 << 16], ids=["streams", "at-once"])
def fleet(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    """Whose workers send and read in streams, or in one call."""
    monkeypatch.setattr(Session, "at_once_bytes", request.param)
    fleet = FakeFleet(2)
    yield fleet
    fleet.close()


@pytest.fixture
def worker(fleet: FakeFleet) -> Iterator[stepd.Worker]:
    with stepd.connect(fleet.target, retry_for=PATIENCE_S) as client, client.run("run").join(lease=1.0) as worker:
        yield worker


@pytest.fixture
def impatient(fleet: FakeFleet) -> Iterator[stepd.Worker]:
    """A worker that gives up soon."""
    with stepd.connect(fleet.target, retry_for=0.3) as client, client.run("run").join(lease=1.0) as worker:
        yield worker


def restarted(attempt: int, round_: int = 0) -> Aborted:
    return Aborted("again", reason="ROUND_RESTARTED", round=round_, attempt=attempt)


def once(error: StepdError, then: Callable[..., object]) -> Callable[..., object]:
    """Say `error` to the first call."""
    errors = [error]
    return lambda request: errors.pop() if errors else then(request)


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_a_step_sends_to_every_shard_and_reads_from_every_shard(fleet: FakeFleet, worker: stepd.Worker) -> None:
    for index, shard in enumerate(fleet.shards):
        shard.pull = lambda request, index=index: (decided(request.round), float(index))
    result = worker.step(GRAD)
    assert (result.step, result.lr, result.grad_norm, result.skipped) == (1, [0.5], 3.0, False)
    np.testing.assert_array_equal(result.params["w"], [0.0] * SIZE + [1.0] * SIZE)
    for shard in fleet.shards:
        assert shard.pushed == [(0, 0, 5.0)]
        assert [(r.round, r.attempt, r.member) for r in shard.pulled] == [(0, 0, MEMBER)]
    assert worker.step(GRAD).receipt.round == 1


def test_a_round_that_is_gathered_again_gets_the_same_gradient_again(fleet: FakeFleet, worker: stepd.Worker) -> None:
    """Whoever says it, and to whichever call: the contribution goes to every shard under the new attempt."""
    first, second = fleet.shards
    first.pull = once(restarted(1), first.pull)  # type: ignore[assignment]
    second.push = lambda header: restarted(2) if header.id.attempt == 1 else receipt(header)
    assert worker.step(GRAD).receipt.status == "accepted"
    for shard in fleet.shards:
        assert shard.pushed[-1] == (0, 2, 5.0)
        assert shard.pulled[-1].attempt == 2


def test_the_first_contribution_is_for_the_attempt_that_joining_named(fleet: FakeFleet) -> None:
    """One before it does without the newcomer, and would call the contribution late."""
    fleet.state.round.attempt = 3
    with stepd.connect(fleet.target, retry_for=PATIENCE_S) as client, client.run("run").join(lease=1.0) as worker:
        worker.step(GRAD)
        worker.step(GRAD)
    for shard in fleet.shards:
        assert [(round_, attempt) for round_, attempt, _ in shard.pushed] == [(0, 3), (1, 0)]


def test_a_lost_answer_is_asked_for_again_and_the_duplicate_is_no_news(fleet: FakeFleet, worker: stepd.Worker) -> None:
    shard = fleet.shards[1]
    shard.push = once(Unavailable("going down"), lambda header: receipt(header, DUPLICATE))  # type: ignore[assignment]
    assert worker.step(GRAD).receipt.status == "accepted"


def test_a_duplicate_that_we_did_not_cause_is_told(fleet: FakeFleet, worker: stepd.Worker) -> None:
    fleet.shards[1].push = lambda header: receipt(header, DUPLICATE)
    assert worker.step(GRAD).receipt.status == "duplicate"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (shard_pb2.RECEIPT_STATUS_LATE, "late"),
        (shard_pb2.RECEIPT_STATUS_STALE, "stale"),
        (shard_pb2.RECEIPT_STATUS_QUARANTINED, "quarantined"),
    ],
)
def test_the_gravest_receipt_of_all_shards_counts(
    fleet: FakeFleet, worker: stepd.Worker, status: int, word: str
) -> None:
    fleet.shards[0].push = lambda header: receipt(header, status)
    assert worker.push(GRAD).status == word


def test_a_round_that_is_not_decided_yet_is_asked_for_again(fleet: FakeFleet, worker: stepd.Worker) -> None:
    pending = [Aborted("not yet", reason="ROUND_PENDING") for _ in range(20)]
    shard = fleet.shards[0]
    shard.pull = lambda request: pending.pop() if pending else (decided(request.round), 0.0)
    assert worker.step(GRAD).step == 1
    assert len(shard.pulled) == 21


def test_a_shard_that_stays_away_is_unavailable_with_what_was_tried(fleet: FakeFleet, impatient: stepd.Worker) -> None:
    worker = impatient
    fleet.shards[1].hears_out = True
    fleet.shards[1].push = lambda header: Unavailable("still starting")
    with pytest.raises(Unavailable, match=r"Push(AndPull)? of run 'run' on shard 1 .* failed .* starting") as caught:
        worker.step(GRAD)
    assert caught.value.details["target"] == fleet.layout.shards[1].target
    # What got through is in the round, so the next step sends the same again before anything else.
    fleet.shards[1].push = receipt
    assert worker.step({"w": np.full(2 * SIZE, 6, np.float32)}).step == 2
    assert fleet.shards[0].pushed == [(0, 0, 5.0), (1, 0, 6.0)]
    assert fleet.shards[1].pushed == [(0, 0, 5.0), (1, 0, 6.0)]


def test_a_refused_contribution_is_none(fleet: FakeFleet, worker: stepd.Worker) -> None:
    for shard in fleet.shards:
        shard.push = lambda header: FailedPrecondition("no")
    with pytest.raises(FailedPrecondition, match="no"):
        worker.step(GRAD)
    for shard in fleet.shards:
        shard.push = receipt
    assert worker.step({"w": np.full(2 * SIZE, 6, np.float32)}).receipt.round == 0


def test_a_shard_that_moved_is_found_at_its_new_place(fleet: FakeFleet, worker: stepd.Worker) -> None:
    moved = FakeFleet(1)
    try:
        fleet.shards[0].push = lambda header: Unavailable("this is not the process you know")
        fleet.layout.shards[0].target = moved.layout.shards[0].target
        assert worker.step(GRAD).step == 1
        assert moved.shards[0].pushed == [(0, 0, 5.0)]
    finally:
        moved.close()


def versions(shard: FakeShard, *steps: int) -> None:
    """Have a shard give these versions to one pull after another, the last one for ever."""
    rest = list(steps)

    def pull(request: shard_pb2.PullRequest) -> tuple[shard_pb2.PullHeader, float] | StepdError:
        step = rest.pop(0) if len(rest) > 1 else rest[0]
        if request.HasField("step") and request.step != step:
            return Aborted("gone", reason="VERSION_PASSED", step=step)
        return decided(step - 1), float(step)

    shard.pull = pull


@pytest.mark.parametrize(
    ("first", "second"), [((3,), (3,)), ((3, 4), (4,)), ((4,), (3, 4)), ((3, 5), (4, 5)), ((3, 4, 6), (5, 6))]
)
def test_parameters_have_one_version(
    fleet: FakeFleet, worker: stepd.Worker, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    versions(fleet.shards[0], *first)
    versions(fleet.shards[1], *second)
    values = set(worker.pull()["w"])
    assert values == {max(first[-1], second[-1])}


def test_a_step_whose_version_is_gone_gives_the_present_one(fleet: FakeFleet, worker: stepd.Worker) -> None:
    for shard in fleet.shards:
        shard.pull = lambda request: (
            Aborted("gone", reason="VERSION_PASSED", step=4) if request.HasField("round") else (decided(3), 4.0)
        )
    result = worker.step(GRAD)
    assert result.step == 4
    assert set(result.params["w"]) == {4.0}
    assert worker.step(GRAD).receipt.round == 4, "the next round is the one that the shards named"


def test_a_pushed_gradient_is_sent_again_when_the_lease_says_so(fleet: FakeFleet, worker: stepd.Worker) -> None:
    grad = GRAD["w"].copy()
    worker.push({"w": grad})
    grad[:] = 99
    fleet.now = round_pb2.RoundId(round=0, attempt=3)
    soon(lambda: all(shard.pushed == [(0, 0, 5.0), (0, 3, 5.0)] for shard in fleet.shards))
    fleet.now = round_pb2.RoundId(round=1)
    assert worker.pull()["w"].shape == (2 * SIZE,)
    assert [r.attempt for r in fleet.shards[0].pulled] == [3]


def test_the_round_before_is_settled_before_the_next_push(fleet: FakeFleet, worker: stepd.Worker) -> None:
    worker.push(GRAD)
    pulls: Iterator[Any] = iter([restarted(1), (decided(0), 0.0)])
    fleet.shards[0].pull = lambda request: next(pulls)
    assert worker.push({"w": np.full(2 * SIZE, 6, np.float32)}).round == 1
    for shard in fleet.shards:
        assert shard.pushed == [(0, 0, 5.0), (0, 1, 5.0), (1, 0, 6.0)]


def test_a_failed_round_is_told_once(fleet: FakeFleet, worker: stepd.Worker) -> None:
    header = decided(0, round_pb2.OUTCOME_FAILED, step=0)
    header.decision.nonfinite.add(member=round_pb2.Member(worker="bob", incarnation=1, rank=4), parameter=0)
    for shard in fleet.shards:
        shard.pull = lambda request: (header, 0.0)
    worker.push(GRAD)
    with pytest.raises(stepd.NonFiniteGradient, match=r"worker 'bob' \(rank 4\) in parameter 'w'"):
        worker.pull()
    assert worker.pull()["w"].shape == (2 * SIZE,)


def test_a_step_without_a_decision_asks_the_coordinator(fleet: FakeFleet, worker: stepd.Worker) -> None:
    for shard in fleet.shards:
        shard.pull = lambda request: (shard_pb2.PullHeader(step=1, round=1), 0.0)
    fleet.state.last_decision.CopyFrom(decided(0).decision)
    assert worker.step(GRAD).grad_norm == 3.0


def test_metrics_go_with_the_next_renewal(fleet: FakeFleet, worker: stepd.Worker) -> None:
    fleet.fail = [Unavailable("busy")]
    worker.report(loss=2.0, rate=1.0)
    worker.report(loss=1.0)
    soon(lambda: {"loss": 1.0, "rate": 1.0} in fleet.renewals)


def test_leaving_tells_the_last_contribution_and_the_last_metrics(fleet: FakeFleet, worker: stepd.Worker) -> None:
    worker.step(GRAD)
    worker.report(loss=1.0)
    worker.leave()
    worker.leave()
    assert [(r.member, r.contributed) for r in fleet.left] == [(MEMBER, round_pb2.RoundId(round=0))]
    assert {"loss": 1.0} in fleet.renewals


# --- A place that was lost ------------------------------------------------------------------------------------------


def test_a_place_that_others_have_ends_a_step_that_waits(fleet: FakeFleet, worker: stepd.Worker) -> None:
    fleet.shards[0].pull = lambda request: Aborted("not yet", reason="ROUND_PENDING")
    fleet.taken = True
    fleet.member.incarnation = 0
    with pytest.raises(
        FailedPrecondition, match=r"worker 'ann' \(rank 0\) is no member of run 'run'.* 'bob'"
    ) as caught:
        worker.step(GRAD)
    assert caught.value.reason == "NOT_A_MEMBER"


def test_a_round_that_waits_gets_the_gradient_again_from_who_has_its_place_back(
    fleet: FakeFleet, worker: stepd.Worker
) -> None:
    senders: list[tuple[int, int]] = []

    def push(header: shard_pb2.PushHeader) -> shard_pb2.PushResponse:
        senders.append((header.member.incarnation, header.id.attempt))
        return receipt(header)

    def pull(request: shard_pb2.PullRequest) -> Any:
        if request.member == MEMBER:
            fleet.state.round.attempt = 2
            fleet.member.incarnation = 0  # its lease has run out
            return Aborted("not yet", reason="ROUND_PENDING")
        return decided(request.round), 0.0

    fleet.shards[0].push, fleet.shards[0].pull = push, pull
    result = worker.step(GRAD)
    assert (result.receipt.status, result.receipt.round) == ("accepted", 0)
    assert senders == [(MEMBER.incarnation, 0), (MEMBER.incarnation + 1, 2)]
    assert worker.step(GRAD).receipt.round == 1
    assert senders[2:] == [(MEMBER.incarnation + 1, 0)]


def test_a_round_that_has_passed_says_under_the_old_name_what_became_of_it(
    fleet: FakeFleet, worker: stepd.Worker
) -> None:
    senders: list[int] = []

    def push(header: shard_pb2.PushHeader) -> Any:
        senders.append(header.member.incarnation)
        if len(senders) == 1:
            fleet.state.round.round, fleet.state.step = 4, 4
            fleet.member.incarnation = 0
            return Unavailable("stopped here")
        return receipt(header, shard_pb2.RECEIPT_STATUS_LATE if header.id.round == 0 else ACCEPTED)

    def pull(request: shard_pb2.PullRequest) -> Any:
        if request.HasField("round") and request.round < 3:
            return Aborted("long gone", reason="VERSION_PASSED")
        return decided(request.round if request.HasField("round") else 3), 0.0

    for shard in fleet.shards:
        shard.pull = pull
    fleet.shards[0].push = push
    fleet.shards[1].push = lambda header: receipt(header, shard_pb2.RECEIPT_STATUS_LATE if len(senders) else ACCEPTED)
    # Whether the first try or the next comes under it: the name is that of the round's member.
    soon(lambda: fleet.renewals)
    result = worker.step(GRAD)
    assert (result.step, result.receipt.status) == (4, "late")
    fleet.shards[1].push = receipt
    soon(lambda: fleet.member.incarnation == MEMBER.incarnation + 1)
    assert worker.step(GRAD).receipt.round == 4
    assert set(senders[:-1]) == {MEMBER.incarnation}
    assert senders[-1] == MEMBER.incarnation + 1


def test_a_gradient_of_parameters_from_before_the_loss_is_not_sent(fleet: FakeFleet, worker: stepd.Worker) -> None:
    fleet.state.round.round, fleet.state.step = 4, 4
    fleet.member.incarnation = 0
    renewals = len(fleet.renewals)
    soon(lambda: len(fleet.renewals) > renewals + 1)
    assert worker.push(GRAD).status == "stale"
    result = worker.step(GRAD)
    assert (result.step, result.receipt.status) == (4, "stale")
    assert not fleet.shards[0].pushed
    assert worker.step(GRAD).receipt.status == "accepted"
    assert [round_ for round_, _, _ in fleet.shards[0].pushed] == [4]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (coordinator_pb2.RUN_STATUS_WAITING, stepd.DeadlineExceeded),
        (coordinator_pb2.RUN_STATUS_RECOVERING, stepd.Unavailable),
        (coordinator_pb2.RUN_STATUS_LOST, stepd.FailedPrecondition),
    ],
)
def test_a_round_that_cannot_go_on_ends_with_the_coordinators_reason(
    fleet: FakeFleet, impatient: stepd.Worker, status: int, kind: type[StepdError]
) -> None:
    fleet.shards[0].pull = lambda request: Aborted("not yet", reason="ROUND_PENDING")
    fleet.state.status = status  # type: ignore[assignment]
    fleet.state.problem = "shard 1 is in the kitchen"
    with pytest.raises(kind, match="shard 1 is in the kitchen"):
        impatient.step(GRAD)


@pytest.mark.parametrize("leaves", [True, False], ids=["left", "forgotten"])
def test_no_call_of_a_worker_outlives_it(fleet: FakeFleet, leaves: bool) -> None:
    with stepd.connect(fleet.target, retry_for=PATIENCE_S) as client:
        worker = client.run("run").join(lease=1.0)
        for _ in range(2):
            worker.step(GRAD)
        at_once = worker._session.at_once_bytes > 0
        assert [shard.open for shard in fleet.shards] == [int(at_once)] * 2
        if leaves:
            worker.leave()
        del worker
        gc.collect()
        soon(lambda: not any(shard.open for shard in fleet.shards))


def test_an_exit_does_not_mask_the_users_error(fleet: FakeFleet) -> None:
    with stepd.connect(fleet.target, retry_for=0.1) as client:
        run = client.run("run")

        def train() -> None:
            with run.join():
                fleet.close()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            train()
