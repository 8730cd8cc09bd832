from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_APPLIED: _ClassVar[Outcome]
    OUTCOME_SKIPPED: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_APPLIED: Outcome
OUTCOME_SKIPPED: Outcome
OUTCOME_FAILED: Outcome

class Member(_message.Message):
    __slots__ = ("worker", "incarnation", "rank")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    worker: str
    incarnation: int
    rank: int
    def __init__(self, worker: _Optional[str] = ..., incarnation: _Optional[int] = ..., rank: _Optional[int] = ...) -> None: ...

class ContributionName(_message.Message):
    __slots__ = ("member", "sequence")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    member: Member
    sequence: int
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., sequence: _Optional[int] = ...) -> None: ...

class RoundId(_message.Message):
    __slots__ = ("round", "attempt")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class ExactSum(_message.Message):
    __slots__ = ("units", "overflow")
    UNITS_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    units: bytes
    overflow: bool
    def __init__(self, units: _Optional[bytes] = ..., overflow: bool = ...) -> None: ...

class NormPart(_message.Message):
    __slots__ = ("powers", "maximum")
    POWERS_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    powers: ExactSum
    maximum: float
    def __init__(self, powers: _Optional[_Union[ExactSum, _Mapping]] = ..., maximum: _Optional[float] = ...) -> None: ...

class NonfiniteContribution(_message.Message):
    __slots__ = ("member", "parameter")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    member: Member
    parameter: int
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., parameter: _Optional[int] = ...) -> None: ...

class GatheredSums(_message.Message):
    __slots__ = ("run_norms", "group_norms", "nonfinite", "overflow", "sequences")
    RUN_NORMS_FIELD_NUMBER: _ClassVar[int]
    GROUP_NORMS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    run_norms: _containers.RepeatedCompositeFieldContainer[NormPart]
    group_norms: _containers.RepeatedCompositeFieldContainer[NormPart]
    nonfinite: _containers.RepeatedCompositeFieldContainer[NonfiniteContribution]
    overflow: bool
    sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run_norms: _Optional[_Iterable[_Union[NormPart, _Mapping]]] = ..., group_norms: _Optional[_Iterable[_Union[NormPart, _Mapping]]] = ..., nonfinite: _Optional[_Iterable[_Union[NonfiniteContribution, _Mapping]]] = ..., overflow: bool = ..., sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class GroupRates(_message.Message):
    __slots__ = ("lr", "clip_scale", "momentum")
    LR_FIELD_NUMBER: _ClassVar[int]
    CLIP_SCALE_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    lr: float
    clip_scale: float
    momentum: float
    def __init__(self, lr: _Optional[float] = ..., clip_scale: _Optional[float] = ..., momentum: _Optional[float] = ...) -> None: ...

class TensorNorms(_message.Message):
    __slots__ = ("parameter", "first", "second")
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    parameter: int
    first: float
    second: float
    def __init__(self, parameter: _Optional[int] = ..., first: _Optional[float] = ..., second: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("id", "outcome", "step", "groups", "grad_norm", "clip_scale", "members", "nonfinite", "quarantined", "norms", "counted", "late")
    ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    CLIP_SCALE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    id: RoundId
    outcome: Outcome
    step: int
    groups: _containers.RepeatedCompositeFieldContainer[GroupRates]
    grad_norm: float
    clip_scale: float
    members: _containers.RepeatedCompositeFieldContainer[Member]
    nonfinite: _containers.RepeatedCompositeFieldContainer[NonfiniteContribution]
    quarantined: _containers.RepeatedCompositeFieldContainer[Member]
    norms: _containers.RepeatedCompositeFieldContainer[TensorNorms]
    counted: _containers.RepeatedCompositeFieldContainer[ContributionName]
    late: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, id: _Optional[_Union[RoundId, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., step: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[GroupRates, _Mapping]]] = ..., grad_norm: _Optional[float] = ..., clip_scale: _Optional[float] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., nonfinite: _Optional[_Iterable[_Union[NonfiniteContribution, _Mapping]]] = ..., quarantined: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., norms: _Optional[_Iterable[_Union[TensorNorms, _Mapping]]] = ..., counted: _Optional[_Iterable[_Union[ContributionName, _Mapping]]] = ..., late: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("member", "sequence", "turns")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    member: Member
    sequence: int
    turns: int
    def __init__(self, member: _Optional[_Union[Member, _Mapping]] = ..., sequence: _Optional[int] = ..., turns: _Optional[int] = ...) -> None: ...

class RecordedDecision(_message.Message):
    __slots__ = ("decision", "standings")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    STANDINGS_FIELD_NUMBER: _ClassVar[int]
    decision: Decision
    standings: _containers.RepeatedCompositeFieldContainer[Standing]
    def __init__(self, decision: _Optional[_Union[Decision, _Mapping]] = ..., standings: _Optional[_Iterable[_Union[Standing, _Mapping]]] = ...) -> None: ...
