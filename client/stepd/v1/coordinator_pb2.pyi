import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from stepd.v1 import round_pb2 as _round_pb2
from stepd.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATUS_UNSPECIFIED: _ClassVar[RunStatus]
    RUN_STATUS_LOADING: _ClassVar[RunStatus]
    RUN_STATUS_WAITING: _ClassVar[RunStatus]
    RUN_STATUS_TRAINING: _ClassVar[RunStatus]
    RUN_STATUS_RECOVERING: _ClassVar[RunStatus]
    RUN_STATUS_LOST: _ClassVar[RunStatus]
RUN_STATUS_UNSPECIFIED: RunStatus
RUN_STATUS_LOADING: RunStatus
RUN_STATUS_WAITING: RunStatus
RUN_STATUS_TRAINING: RunStatus
RUN_STATUS_RECOVERING: RunStatus
RUN_STATUS_LOST: RunStatus

class ContributionCounts(_message.Message):
    __slots__ = ("accepted", "duplicate", "late", "stale", "quarantined")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    duplicate: int
    late: int
    stale: int
    quarantined: int
    def __init__(self, accepted: _Optional[int] = ..., duplicate: _Optional[int] = ..., late: _Optional[int] = ..., stale: _Optional[int] = ..., quarantined: _Optional[int] = ...) -> None: ...

class WorkerState(_message.Message):
    __slots__ = ("member", "joined_at", "metrics", "awaited", "silent", "lease", "contributions")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    member: _round_pb2.Member
    joined_at: _timestamp_pb2.Timestamp
    metrics: _containers.ScalarMap[str, float]
    awaited: _duration_pb2.Duration
    silent: _duration_pb2.Duration
    lease: _duration_pb2.Duration
    contributions: ContributionCounts
    def __init__(self, member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., joined_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., awaited: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., silent: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., contributions: _Optional[_Union[ContributionCounts, _Mapping]] = ...) -> None: ...

class MissingWorker(_message.Message):
    __slots__ = ("member", "rank", "since", "why")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    member: _round_pb2.Member
    rank: int
    since: _duration_pb2.Duration
    why: str
    def __init__(self, member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., rank: _Optional[int] = ..., since: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., why: _Optional[str] = ...) -> None: ...

class RunState(_message.Message):
    __slots__ = ("spec", "status", "step", "round", "rates", "workers", "bytes", "created_at", "last_decision", "problem", "run_id", "missing")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_DECISION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    spec: _run_pb2.RunSpec
    status: RunStatus
    step: int
    round: _round_pb2.RoundId
    rates: _containers.RepeatedScalarFieldContainer[float]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerState]
    bytes: int
    created_at: _timestamp_pb2.Timestamp
    last_decision: _round_pb2.Decision
    problem: str
    run_id: str
    missing: _containers.RepeatedCompositeFieldContainer[MissingWorker]
    def __init__(self, spec: _Optional[_Union[_run_pb2.RunSpec, _Mapping]] = ..., status: _Optional[_Union[RunStatus, str]] = ..., step: _Optional[int] = ..., round: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ..., rates: _Optional[_Iterable[float]] = ..., workers: _Optional[_Iterable[_Union[WorkerState, _Mapping]]] = ..., bytes: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_decision: _Optional[_Union[_round_pb2.Decision, _Mapping]] = ..., problem: _Optional[str] = ..., run_id: _Optional[str] = ..., missing: _Optional[_Iterable[_Union[MissingWorker, _Mapping]]] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("request_id", "spec")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: _run_pb2.RunSpec
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[_run_pb2.RunSpec, _Mapping]] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run", "layout")
    RUN_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    run: RunState
    layout: _run_pb2.Layout
    def __init__(self, run: _Optional[_Union[RunState, _Mapping]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class StartRunRequest(_message.Message):
    __slots__ = ("run", "run_id")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run: str
    run_id: str
    def __init__(self, run: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class StartRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunState
    def __init__(self, run: _Optional[_Union[RunState, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run", "layout")
    RUN_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    run: RunState
    layout: _run_pb2.Layout
    def __init__(self, run: _Optional[_Union[RunState, _Mapping]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunState]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunState, _Mapping]]] = ...) -> None: ...

class RateChange(_message.Message):
    __slots__ = ("lr", "group")
    LR_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    lr: float
    group: int
    def __init__(self, lr: _Optional[float] = ..., group: _Optional[int] = ...) -> None: ...

class UpdateRunRequest(_message.Message):
    __slots__ = ("run", "clip", "sync", "schedule", "rate", "drop_clip", "request_id")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    DROP_CLIP_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    run: str
    clip: _run_pb2.ClipSpec
    sync: _run_pb2.SyncSpec
    schedule: _run_pb2.ScheduleSpec
    rate: RateChange
    drop_clip: bool
    request_id: str
    def __init__(self, run: _Optional[str] = ..., clip: _Optional[_Union[_run_pb2.ClipSpec, _Mapping]] = ..., sync: _Optional[_Union[_run_pb2.SyncSpec, _Mapping]] = ..., schedule: _Optional[_Union[_run_pb2.ScheduleSpec, _Mapping]] = ..., rate: _Optional[_Union[RateChange, _Mapping]] = ..., drop_clip: bool = ..., request_id: _Optional[str] = ...) -> None: ...

class UpdateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunState
    def __init__(self, run: _Optional[_Union[RunState, _Mapping]] = ...) -> None: ...

class AddGroupRequest(_message.Message):
    __slots__ = ("request_id", "run", "group", "parameters")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    group: _run_pb2.GroupSpec
    parameters: _containers.RepeatedCompositeFieldContainer[_run_pb2.ParameterSpec]
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., group: _Optional[_Union[_run_pb2.GroupSpec, _Mapping]] = ..., parameters: _Optional[_Iterable[_Union[_run_pb2.ParameterSpec, _Mapping]]] = ...) -> None: ...

class AddGroupResponse(_message.Message):
    __slots__ = ("spec", "layout")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    spec: _run_pb2.RunSpec
    layout: _run_pb2.Layout
    def __init__(self, spec: _Optional[_Union[_run_pb2.RunSpec, _Mapping]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class CommitGroupRequest(_message.Message):
    __slots__ = ("run", "request_id", "abandon")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ABANDON_FIELD_NUMBER: _ClassVar[int]
    run: str
    request_id: str
    abandon: bool
    def __init__(self, run: _Optional[str] = ..., request_id: _Optional[str] = ..., abandon: bool = ...) -> None: ...

class CommitGroupResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunState
    def __init__(self, run: _Optional[_Union[RunState, _Mapping]] = ...) -> None: ...

class GroupChange(_message.Message):
    __slots__ = ("hyperparameters",)
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _run_pb2.Hyperparameter
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_run_pb2.Hyperparameter, _Mapping]] = ...) -> None: ...
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    hyperparameters: _containers.MessageMap[str, _run_pb2.Hyperparameter]
    def __init__(self, hyperparameters: _Optional[_Mapping[str, _run_pb2.Hyperparameter]] = ...) -> None: ...

class LoadStateRequest(_message.Message):
    __slots__ = ("run", "state_id", "groups")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    run: str
    state_id: str
    groups: _containers.RepeatedCompositeFieldContainer[GroupChange]
    def __init__(self, run: _Optional[str] = ..., state_id: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[GroupChange, _Mapping]]] = ...) -> None: ...

class LoadStateResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: RunState
    def __init__(self, run: _Optional[_Union[RunState, _Mapping]] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("run", "run_id")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run: str
    run_id: str
    def __init__(self, run: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("decision", "decided_at", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DECISION_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    decision: _round_pb2.Decision
    decided_at: _timestamp_pb2.Timestamp
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, decision: _Optional[_Union[_round_pb2.Decision, _Mapping]] = ..., decided_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class JoinRunRequest(_message.Message):
    __slots__ = ("request_id", "run", "rank", "name", "lease", "again")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    run: str
    rank: int
    name: str
    lease: _duration_pb2.Duration
    again: _round_pb2.Member
    def __init__(self, request_id: _Optional[str] = ..., run: _Optional[str] = ..., rank: _Optional[int] = ..., name: _Optional[str] = ..., lease: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., again: _Optional[_Union[_round_pb2.Member, _Mapping]] = ...) -> None: ...

class JoinRunResponse(_message.Message):
    __slots__ = ("member", "run", "layout")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    member: _round_pb2.Member
    run: RunState
    layout: _run_pb2.Layout
    def __init__(self, member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., run: _Optional[_Union[RunState, _Mapping]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class RenewLeaseRequest(_message.Message):
    __slots__ = ("run", "member", "metrics", "observed", "observed_before")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    run: str
    member: _round_pb2.Member
    metrics: _containers.ScalarMap[str, float]
    observed: _containers.RepeatedScalarFieldContainer[float]
    observed_before: int
    def __init__(self, run: _Optional[str] = ..., member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., observed: _Optional[_Iterable[float]] = ..., observed_before: _Optional[int] = ...) -> None: ...

class RenewLeaseResponse(_message.Message):
    __slots__ = ("round", "counted")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    round: _round_pb2.RoundId
    counted: int
    def __init__(self, round: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ..., counted: _Optional[int] = ...) -> None: ...

class LeaveRunRequest(_message.Message):
    __slots__ = ("run", "member", "contributed")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    run: str
    member: _round_pb2.Member
    contributed: _round_pb2.RoundId
    def __init__(self, run: _Optional[str] = ..., member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., contributed: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ...) -> None: ...

class LeaveRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShardState(_message.Message):
    __slots__ = ("index", "target", "ready", "pid")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    index: int
    target: str
    ready: bool
    pid: int
    def __init__(self, index: _Optional[int] = ..., target: _Optional[str] = ..., ready: bool = ..., pid: _Optional[int] = ...) -> None: ...

class GetFleetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetFleetResponse(_message.Message):
    __slots__ = ("shards", "runs", "version")
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardState]
    runs: int
    version: str
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardState, _Mapping]]] = ..., runs: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class HeldRun(_message.Message):
    __slots__ = ("run", "run_id", "round", "step", "torn", "layout_version", "repeated_contributions")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TORN_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPEATED_CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    run: str
    run_id: str
    round: int
    step: int
    torn: bool
    layout_version: int
    repeated_contributions: _containers.RepeatedCompositeFieldContainer[RepeatedContributions]
    def __init__(self, run: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., torn: bool = ..., layout_version: _Optional[int] = ..., repeated_contributions: _Optional[_Iterable[_Union[RepeatedContributions, _Mapping]]] = ...) -> None: ...

class RepeatedContributions(_message.Message):
    __slots__ = ("worker", "incarnation", "count")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    incarnation: int
    count: int
    def __init__(self, worker: _Optional[str] = ..., incarnation: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class RegisterShardRequest(_message.Message):
    __slots__ = ("index", "target", "instance", "pid", "runs")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    index: int
    target: str
    instance: str
    pid: int
    runs: _containers.RepeatedCompositeFieldContainer[HeldRun]
    def __init__(self, index: _Optional[int] = ..., target: _Optional[str] = ..., instance: _Optional[str] = ..., pid: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[HeldRun, _Mapping]]] = ...) -> None: ...

class RegisterShardResponse(_message.Message):
    __slots__ = ("interval",)
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    interval: _duration_pb2.Duration
    def __init__(self, interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
