"""What the fleet tells, from its messages to JSON."""

from __future__ import annotations

import json
import math

import pytest

from stepd import specs
from stepd.info import FleetInfo, MissingInfo, RunInfo, StepEvent
from stepd.policies import ClipNorm, Sync
from stepd.rules import AdamW
from stepd.schedules import Cosine
from stepd.v1 import coordinator_pb2, round_pb2, run_pb2


def strict_json(value: object) -> object:
    """There and back as any strict reader does it."""
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.fixture
def state() -> coordinator_pb2.RunState:
    spec = run_pb2.RunSpec(
        name="digits",
        parameters=[
            run_pb2.ParameterSpec(name="w", shape=[64, 10]),
            run_pb2.ParameterSpec(name="scalar", shape=[]),
            run_pb2.ParameterSpec(name="empty", shape=[0, 7]),
        ],
        groups=[run_pb2.GroupSpec(optimizer=specs.optimizer_to_proto(AdamW(lr=0.5)))],
        schedule=specs.schedule_to_proto(Cosine(total_steps=10)),
        clip=specs.clip_to_proto(ClipNorm(1.0)),
        sync=specs.sync_to_proto(Sync(workers=2)),
    )
    state = coordinator_pb2.RunState(
        spec=spec,
        status=coordinator_pb2.RUN_STATUS_TRAINING,
        step=3,
        round=round_pb2.RoundId(round=4),
        rates=[0.5],
        workers=[
            coordinator_pb2.WorkerState(member=round_pb2.Member(worker="b", rank=1), metrics={"loss": math.inf}),
            coordinator_pb2.WorkerState(member=round_pb2.Member(worker="a", rank=0), metrics={"loss": 1.5}),
        ],
        bytes=1000,
    )
    state.created_at.FromMilliseconds(1_500)
    return state


def test_a_run_before_its_first_step(state: coordinator_pb2.RunState) -> None:
    info = RunInfo.from_proto(state)
    assert (info.name, info.status, info.step, info.round, info.lr) == ("digits", "training", 3, 4, [0.5])
    assert info.optimizer == AdamW(lr=0.5)
    assert info.schedule == Cosine(total_steps=10)
    assert info.clip == ClipNorm(1.0)
    assert info.sync == Sync(workers=2)
    assert (info.parameters, info.elements, info.bytes) == (3, 641, 1000)
    assert info.created_at == 1.5
    assert (info.last_norm, info.last_clip_scale, info.problem) == (None, None, None)
    assert [worker.id for worker in info.workers] == ["a", "b"]


def test_who_is_awaited_silent_and_missing(state: coordinator_pb2.RunState) -> None:
    waits, works = state.workers[1], state.workers[0]
    waits.awaited.FromMilliseconds(1_500)
    waits.silent.FromMilliseconds(250)
    waits.lease.FromSeconds(10)
    works.contributions.CopyFrom(coordinator_pb2.ContributionCounts(accepted=7, late=2))
    state.missing.add(rank=2)
    gone = state.missing.add(rank=3, member=round_pb2.Member(worker="c", rank=3), why="its lease of 10 s has run out")
    gone.since.FromSeconds(4)
    info = RunInfo.from_proto(state)
    a, b = info.workers
    assert (a.awaited, a.silent, a.lease) == (1.5, 0.25, 10.0)
    assert (b.awaited, b.contributions["accepted"], b.contributions["late"], b.contributions["stale"]) == (
        None,
        7,
        2,
        0,
    )
    assert info.missing == [
        MissingInfo(2, None, None, None),
        MissingInfo(3, "c", 4.0, "its lease of 10 s has run out"),
    ]
    document = strict_json(info.to_json())
    assert isinstance(document, dict)
    assert document["missing"][1] == {"rank": 3, "id": "c", "since": 4.0, "why": "its lease of 10 s has run out"}
    assert document["workers"][0]["awaited"] == 1.5


def test_a_run_after_a_step_and_with_a_problem(state: coordinator_pb2.RunState) -> None:
    state.last_decision.CopyFrom(round_pb2.Decision(grad_norm=2.0, clip_scale=0.5))
    state.status = coordinator_pb2.RUN_STATUS_RECOVERING
    state.problem = "shard 1 is away"
    info = RunInfo.from_proto(state)
    assert (info.last_norm, info.last_clip_scale) == (2.0, 0.5)
    assert (info.status, info.problem) == ("recovering", "shard 1 is away")


def test_a_run_without_schedule_and_clip(state: coordinator_pb2.RunState) -> None:
    state.spec.ClearField("schedule")
    state.spec.ClearField("clip")
    info = RunInfo.from_proto(state)
    assert (info.schedule, info.clip) == (None, None)
    strict_json(info.to_json())


def test_a_run_as_json(state: coordinator_pb2.RunState) -> None:
    document = strict_json(RunInfo.from_proto(state).to_json())
    assert isinstance(document, dict)
    assert document["optimizer"]["type"] == "AdamW"
    assert document["optimizer"]["betas"] == [0.9, 0.999]
    assert document["schedule"]["total_steps"] == 10
    assert document["clip"] == {"type": "ClipNorm", "max_norm": 1.0, "norm_type": 2.0}
    assert document["sync"]["workers"] == 2
    assert [worker["metrics"]["loss"] for worker in document["workers"]] == [1.5, "inf"]


def test_a_status_of_a_newer_server_is_no_error(state: coordinator_pb2.RunState) -> None:
    state.status = 99  # type: ignore[assignment]
    assert RunInfo.from_proto(state).status == "unknown"


def test_a_fleet_is_ready_when_every_shard_is() -> None:
    message = coordinator_pb2.GetFleetResponse(
        shards=[
            coordinator_pb2.ShardState(index=0, target="127.0.0.1:1", ready=True, pid=11),
            coordinator_pb2.ShardState(index=1),
        ],
        runs=2,
        version="1.2.3",
    )
    fleet = FleetInfo.from_proto(message, target="127.0.0.1:7070")
    assert not fleet.ready
    assert [shard.pid for shard in fleet.shards] == [11, None]
    assert strict_json(fleet.to_json()) == {
        "target": "127.0.0.1:7070",
        "ready": False,
        "version": "1.2.3",
        "runs": 2,
        "shards": [
            {"index": 0, "target": "127.0.0.1:1", "ready": True, "pid": 11},
            {"index": 1, "target": "", "ready": False, "pid": None},
        ],
    }


def test_a_step_that_was_skipped_names_who_sent_what_is_not_finite() -> None:
    message = coordinator_pb2.WatchRunResponse(
        decision=round_pb2.Decision(
            id=round_pb2.RoundId(round=7, attempt=1),
            outcome=round_pb2.OUTCOME_SKIPPED,
            step=5,
            groups=[round_pb2.GroupRates(lr=0.1), round_pb2.GroupRates(lr=0.2)],
            grad_norm=math.nan,
            members=[round_pb2.Member(worker="a"), round_pb2.Member(worker="b", rank=1)],
            nonfinite=[round_pb2.NonfiniteContribution(member=round_pb2.Member(worker="b", rank=1), parameter=3)],
        ),
        metrics={"loss": 0.25},
    )
    message.decided_at.FromMilliseconds(2_250)
    event = StepEvent.from_proto(message)
    assert (event.step, event.round, event.outcome, event.lr) == (5, 7, "skipped", [0.1, 0.2])
    assert (event.workers, event.nonfinite, event.metrics, event.at) == (2, ["b"], {"loss": 0.25}, 2.25)
    document = strict_json(event.to_json())
    assert isinstance(document, dict)
    assert document["grad_norm"] == "nan"
