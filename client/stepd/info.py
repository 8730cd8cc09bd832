"""What the fleet tells of itself, its runs and their steps, as frozen dataclasses.

Each is made from the message that carries it and turns into JSON for `--json` and for logs.
Rates, counts and times are plain numbers; times are seconds since the epoch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stepd import specs
from stepd.policies import AnyClip, AnySync
from stepd.rules import Rule
from stepd.schedules import Schedule
from stepd.v1 import coordinator_pb2, round_pb2

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

Json = Any  # what json.dumps takes; the type system has no closed form for it

STATUS: Final = {
    coordinator_pb2.RUN_STATUS_LOADING: "loading",
    coordinator_pb2.RUN_STATUS_WAITING: "waiting",
    coordinator_pb2.RUN_STATUS_TRAINING: "training",
    coordinator_pb2.RUN_STATUS_RECOVERING: "recovering",
    coordinator_pb2.RUN_STATUS_LOST: "lost",
}
OUTCOME: Final = {
    round_pb2.OUTCOME_APPLIED: "applied",
    round_pb2.OUTCOME_SKIPPED: "skipped",
    round_pb2.OUTCOME_FAILED: "failed",
}
CONTRIBUTIONS: Final = ("accepted", "duplicate", "late", "stale", "quarantined")
# A newer server may know more than this library does.
UNKNOWN: Final = "unknown"


@dataclass(frozen=True)
class ShardInfo:
    """One server of parameters.

    Attributes:
        index: its place in the layout, from 0.
        target: where workers reach it.
        ready: it answers.
        pid: its process id on its own machine; None while it is away and has not been heard of by this coordinator.
    """

    index: int
    target: str
    ready: bool
    pid: int | None

    @classmethod
    def from_proto(cls, message: coordinator_pb2.ShardState) -> ShardInfo:
        return cls(index=message.index, target=message.target, ready=message.ready, pid=message.pid or None)

    def to_json(self) -> Json:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class FleetInfo:
    """The servers of a fleet.

    Attributes:
        target: the coordinator's, as this client dials it.
        shards: one for each index that the fleet is to have.
        runs: how many there are.
        version: stepd's, on the coordinator.
    """

    target: str
    shards: tuple[ShardInfo, ...]
    runs: int
    version: str

    @property
    def ready(self) -> bool:
        return all(shard.ready for shard in self.shards)

    @classmethod
    def from_proto(cls, message: coordinator_pb2.GetFleetResponse, *, target: str) -> FleetInfo:
        shards = tuple(ShardInfo.from_proto(shard) for shard in message.shards)
        return cls(target=target, shards=shards, runs=message.runs, version=message.version)

    def to_json(self) -> Json:
        return {
            "target": self.target,
            "ready": self.ready,
            "version": self.version,
            "runs": self.runs,
            "shards": [shard.to_json() for shard in self.shards],
        }


@dataclass(frozen=True)
class WorkerInfo:
    """A member of a run.

    Attributes:
        id: its name in the run.
        rank: from 0; unique in the run.
        metrics: the latest values it gave to `Worker.report`.
        joined_at: seconds since the epoch.
        lease: seconds after which it is taken for lost if it is not heard of.
        silent: seconds for which it has not been heard of.
        awaited: seconds for which the round has waited for its contribution; None: it does not.
        contributions: what became of them, by the status of their receipts, since it joined or since the coordinator
            was started again. A "duplicate" is a repeat of one that has counted.
    """

    id: str
    rank: int
    metrics: dict[str, float]
    joined_at: float
    lease: float
    silent: float
    awaited: float | None
    contributions: dict[str, int]

    @classmethod
    def from_proto(cls, message: coordinator_pb2.WorkerState) -> WorkerInfo:
        return cls(
            id=message.member.worker,
            rank=message.member.rank,
            metrics=dict(message.metrics),
            joined_at=_seconds(message.joined_at),
            lease=_seconds(message.lease),
            silent=_seconds(message.silent),
            awaited=_seconds(message.awaited) if message.HasField("awaited") else None,
            contributions={status: getattr(message.contributions, status) for status in CONTRIBUTIONS},
        )

    def to_json(self) -> Json:
        return {**dataclasses.asdict(self), "metrics": _numbers(self.metrics)}


@dataclass(frozen=True)
class MissingInfo:
    """A place that is empty, in a run that waits for workers.

    Attributes:
        rank: of the place.
        id: who had it last; None if nobody is known to.
        since: seconds for which it has been empty; None if nobody is known to have had it.
        why: "its lease of 10 s has run out"; None if nobody is known to have had it.
    """

    rank: int
    id: str | None
    since: float | None
    why: str | None

    @classmethod
    def from_proto(cls, message: coordinator_pb2.MissingWorker) -> MissingInfo:
        return cls(
            rank=message.rank,
            id=message.member.worker or None,
            since=_seconds(message.since) if message.HasField("since") else None,
            why=message.why or None,
        )

    def to_json(self) -> Json:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class RunInfo:
    """Where a run stands.

    Attributes:
        name: the run's.
        status: "loading", "waiting" (too few workers), "training", "recovering" (a shard is away) or "lost".
        step: steps applied.
        round: the round that is gathered now; grows with every decision, applied or not.
        lr: by group, the rate of the next step.
        workers: the members, by rank.
        missing: by rank, the places that a run which is "waiting" waits for, as far as they are known.
        optimizer: the rule of the first group.
        schedule: of the run; None is a constant rate.
        clip: of the run; None is none.
        sync: how a step gathers contributions.
        bytes: of parameters, buffers and accumulators over all shards.
        parameters: how many tensors.
        elements: how many numbers in them.
        created_at: seconds since the epoch.
        last_norm: the gradient's norm in the latest step, before clipping; None before the first.
        last_clip_scale: what the clip by norm multiplied it by; None before the first.
        problem: one sentence on what is wrong; None if nothing is.
    """

    name: str
    status: str
    step: int
    round: int
    lr: list[float]
    workers: list[WorkerInfo]
    missing: list[MissingInfo]
    optimizer: Rule
    schedule: Schedule | None
    clip: AnyClip | None
    sync: AnySync
    bytes: int
    parameters: int
    elements: int
    created_at: float
    last_norm: float | None
    last_clip_scale: float | None
    problem: str | None

    @classmethod
    def from_proto(cls, message: coordinator_pb2.RunState) -> RunInfo:
        spec = message.spec
        decided = message.last_decision if message.HasField("last_decision") else None
        workers = sorted((WorkerInfo.from_proto(worker) for worker in message.workers), key=lambda worker: worker.rank)
        return cls(
            name=spec.name,
            status=STATUS.get(message.status, UNKNOWN),
            step=message.step,
            round=message.round.round,
            lr=list(message.rates),
            workers=workers,
            missing=[MissingInfo.from_proto(place) for place in message.missing],
            optimizer=specs.optimizer_from_proto(spec.groups[0].optimizer),
            schedule=specs.schedule_from_proto(spec.schedule) if spec.HasField("schedule") else None,
            clip=specs.clip_from_proto(spec.clip) if spec.HasField("clip") else None,
            sync=specs.sync_from_proto(spec.sync),
            bytes=message.bytes,
            parameters=len(spec.parameters),
            elements=sum(math.prod(parameter.shape) for parameter in spec.parameters),
            created_at=_seconds(message.created_at),
            last_norm=decided.grad_norm if decided else None,
            last_clip_scale=decided.clip_scale if decided else None,
            problem=message.problem or None,
        )

    def to_json(self) -> Json:
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return plain | {
            "workers": [worker.to_json() for worker in self.workers],
            "missing": [place.to_json() for place in self.missing],
            "optimizer": _spec(self.optimizer),
            "schedule": _spec(self.schedule),
            "clip": _spec(self.clip),
            "sync": _spec(self.sync),
            "last_norm": _number(self.last_norm),
        }


@dataclass(frozen=True)
class StepEvent:
    """How one round of a run ended.

    Attributes:
        step: steps applied after it.
        round: which one.
        outcome: "applied", "skipped" (nothing changed) or "failed" (nothing changed and every worker got an error).
        lr: by group.
        grad_norm: of the aggregated gradient over all shards, before the clip by norm.
        clip_scale: what the clip by norm multiplied it by; at most 1.
        workers: how many took part.
        metrics: the mean over workers of what each gave to `Worker.report` since the last event.
        at: when it was decided, seconds since the epoch.
        nonfinite: the workers whose values were not finite.
    """

    step: int
    round: int
    outcome: str
    lr: list[float]
    grad_norm: float
    clip_scale: float
    workers: int
    metrics: dict[str, float]
    at: float
    nonfinite: list[str]

    @classmethod
    def from_proto(cls, message: coordinator_pb2.WatchRunResponse) -> StepEvent:
        decision = message.decision
        return cls(
            step=decision.step,
            round=decision.id.round,
            outcome=OUTCOME.get(decision.outcome, UNKNOWN),
            lr=[group.lr for group in decision.groups],
            grad_norm=decision.grad_norm,
            clip_scale=decision.clip_scale,
            workers=len(decision.members),
            metrics=dict(message.metrics),
            at=_seconds(message.decided_at),
            nonfinite=[found.member.worker for found in decision.nonfinite],
        )

    def to_json(self) -> Json:
        plain = dataclasses.asdict(self)
        return plain | {"grad_norm": _number(self.grad_norm), "metrics": _numbers(self.metrics)}


def _seconds(at: Timestamp | Duration) -> float:
    return at.seconds + at.nanos * 1e-9


def _number(value: float | None) -> Json:
    """JSON has no NaN and no infinity; a reader in any language understands these words."""
    return value if value is None or math.isfinite(value) else str(value)


def _numbers(values: dict[str, float]) -> Json:
    return {name: _number(value) for name, value in values.items()}


def _spec(spec: Any) -> Json:
    """A spec as its name with its fields, as a user would write it."""
    if spec is None:
        return None
    fields = {field.name: _plain(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
    return {"type": type(spec).__name__, **fields}


def _plain(value: Any) -> Json:
    if dataclasses.is_dataclass(value):
        return _spec(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return _number(value) if isinstance(value, float) else value
