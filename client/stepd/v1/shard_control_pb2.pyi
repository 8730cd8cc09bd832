from stepd.v1 import round_pb2 as _round_pb2
from stepd.v1 import run_pb2 as _run_pb2
from stepd.v1 import shard_pb2 as _shard_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrepareRunRequest(_message.Message):
    __slots__ = ("run_id", "spec", "layout")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    spec: _run_pb2.RunSpec
    layout: _run_pb2.Layout
    def __init__(self, run_id: _Optional[str] = ..., spec: _Optional[_Union[_run_pb2.RunSpec, _Mapping]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class PrepareRunResponse(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class SealRunRequest(_message.Message):
    __slots__ = ("run", "extension")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    extension: str
    def __init__(self, run: _Optional[str] = ..., extension: _Optional[str] = ...) -> None: ...

class SealRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExtendRunRequest(_message.Message):
    __slots__ = ("extension", "prepared")
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    extension: str
    prepared: PrepareRunRequest
    def __init__(self, extension: _Optional[str] = ..., prepared: _Optional[_Union[PrepareRunRequest, _Mapping]] = ...) -> None: ...

class ExtendRunResponse(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class SettleExtensionRequest(_message.Message):
    __slots__ = ("run", "extension", "round", "drop", "layout_version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    extension: str
    round: int
    drop: bool
    layout_version: int
    def __init__(self, run: _Optional[str] = ..., extension: _Optional[str] = ..., round: _Optional[int] = ..., drop: bool = ..., layout_version: _Optional[int] = ...) -> None: ...

class SettleExtensionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DropRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class DropRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LeadRoundsRequest(_message.Message):
    __slots__ = ("run", "finish", "gather")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    GATHER_FIELD_NUMBER: _ClassVar[int]
    run: str
    finish: _round_pb2.Decision
    gather: RoundToGather
    def __init__(self, run: _Optional[str] = ..., finish: _Optional[_Union[_round_pb2.Decision, _Mapping]] = ..., gather: _Optional[_Union[RoundToGather, _Mapping]] = ...) -> None: ...

class LeadRoundsResponse(_message.Message):
    __slots__ = ("finished", "gathered")
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    GATHERED_FIELD_NUMBER: _ClassVar[int]
    finished: int
    gathered: RoundProgress
    def __init__(self, finished: _Optional[int] = ..., gathered: _Optional[_Union[RoundProgress, _Mapping]] = ...) -> None: ...

class RoundToGather(_message.Message):
    __slots__ = ("id", "members", "clip", "reduction", "deterministic", "quarantined", "layout_version", "in_turn", "selected")
    ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    IN_TURN_FIELD_NUMBER: _ClassVar[int]
    SELECTED_FIELD_NUMBER: _ClassVar[int]
    id: _round_pb2.RoundId
    members: _containers.RepeatedCompositeFieldContainer[_round_pb2.Member]
    clip: _run_pb2.ClipSpec
    reduction: _run_pb2.Reduction
    deterministic: bool
    quarantined: _containers.RepeatedCompositeFieldContainer[_round_pb2.Member]
    layout_version: int
    in_turn: bool
    selected: SelectedContribution
    def __init__(self, id: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ..., members: _Optional[_Iterable[_Union[_round_pb2.Member, _Mapping]]] = ..., clip: _Optional[_Union[_run_pb2.ClipSpec, _Mapping]] = ..., reduction: _Optional[_Union[_run_pb2.Reduction, str]] = ..., deterministic: bool = ..., quarantined: _Optional[_Iterable[_Union[_round_pb2.Member, _Mapping]]] = ..., layout_version: _Optional[int] = ..., in_turn: bool = ..., selected: _Optional[_Union[SelectedContribution, _Mapping]] = ...) -> None: ...

class SelectedContribution(_message.Message):
    __slots__ = ("name", "scale")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    name: _round_pb2.ContributionName
    scale: float
    def __init__(self, name: _Optional[_Union[_round_pb2.ContributionName, _Mapping]] = ..., scale: _Optional[float] = ...) -> None: ...

class OfferedContribution(_message.Message):
    __slots__ = ("name", "based_on")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASED_ON_FIELD_NUMBER: _ClassVar[int]
    name: _round_pb2.ContributionName
    based_on: int
    def __init__(self, name: _Optional[_Union[_round_pb2.ContributionName, _Mapping]] = ..., based_on: _Optional[int] = ...) -> None: ...

class EarlierAttempts(_message.Message):
    __slots__ = ("whole", "unknown")
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    whole: _containers.RepeatedCompositeFieldContainer[_round_pb2.Member]
    unknown: bool
    def __init__(self, whole: _Optional[_Iterable[_Union[_round_pb2.Member, _Mapping]]] = ..., unknown: bool = ...) -> None: ...

class RoundProgress(_message.Message):
    __slots__ = ("arrived", "sums", "offered", "withdrawn", "earlier")
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    SUMS_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    arrived: _round_pb2.Member
    sums: _round_pb2.GatheredSums
    offered: OfferedContribution
    withdrawn: _round_pb2.ContributionName
    earlier: EarlierAttempts
    def __init__(self, arrived: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., sums: _Optional[_Union[_round_pb2.GatheredSums, _Mapping]] = ..., offered: _Optional[_Union[OfferedContribution, _Mapping]] = ..., withdrawn: _Optional[_Union[_round_pb2.ContributionName, _Mapping]] = ..., earlier: _Optional[_Union[EarlierAttempts, _Mapping]] = ...) -> None: ...

class CloseRoundRequest(_message.Message):
    __slots__ = ("run", "id")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    run: str
    id: _round_pb2.RoundId
    def __init__(self, run: _Optional[str] = ..., id: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ...) -> None: ...

class CloseRoundResponse(_message.Message):
    __slots__ = ("begun",)
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    begun: _containers.RepeatedCompositeFieldContainer[_round_pb2.Member]
    def __init__(self, begun: _Optional[_Iterable[_Union[_round_pb2.Member, _Mapping]]] = ...) -> None: ...

class RefusedContribution(_message.Message):
    __slots__ = ("name", "status")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    name: _round_pb2.ContributionName
    status: _shard_pb2.ReceiptStatus
    def __init__(self, name: _Optional[_Union[_round_pb2.ContributionName, _Mapping]] = ..., status: _Optional[_Union[_shard_pb2.ReceiptStatus, str]] = ...) -> None: ...

class SelectContributorsRequest(_message.Message):
    __slots__ = ("run", "id", "selected", "refused")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    SELECTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    run: str
    id: _round_pb2.RoundId
    selected: _containers.RepeatedCompositeFieldContainer[SelectedContribution]
    refused: _containers.RepeatedCompositeFieldContainer[RefusedContribution]
    def __init__(self, run: _Optional[str] = ..., id: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ..., selected: _Optional[_Iterable[_Union[SelectedContribution, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[RefusedContribution, _Mapping]]] = ...) -> None: ...

class SelectContributorsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MeasureRoundRequest(_message.Message):
    __slots__ = ("run", "decision")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    run: str
    decision: _round_pb2.Decision
    def __init__(self, run: _Optional[str] = ..., decision: _Optional[_Union[_round_pb2.Decision, _Mapping]] = ...) -> None: ...

class TensorSums(_message.Message):
    __slots__ = ("parameter", "first", "second")
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    parameter: int
    first: _round_pb2.ExactSum
    second: _round_pb2.ExactSum
    def __init__(self, parameter: _Optional[int] = ..., first: _Optional[_Union[_round_pb2.ExactSum, _Mapping]] = ..., second: _Optional[_Union[_round_pb2.ExactSum, _Mapping]] = ...) -> None: ...

class MeasureRoundResponse(_message.Message):
    __slots__ = ("sums",)
    SUMS_FIELD_NUMBER: _ClassVar[int]
    sums: _containers.RepeatedCompositeFieldContainer[TensorSums]
    def __init__(self, sums: _Optional[_Iterable[_Union[TensorSums, _Mapping]]] = ...) -> None: ...

class HoldStateRequest(_message.Message):
    __slots__ = ("run", "state_id")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    run: str
    state_id: str
    def __init__(self, run: _Optional[str] = ..., state_id: _Optional[str] = ...) -> None: ...

class HoldStateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CommitStateRequest(_message.Message):
    __slots__ = ("run", "state_id", "round", "groups")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    run: str
    state_id: str
    round: int
    groups: _containers.RepeatedCompositeFieldContainer[_run_pb2.GroupSpec]
    def __init__(self, run: _Optional[str] = ..., state_id: _Optional[str] = ..., round: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[_run_pb2.GroupSpec, _Mapping]]] = ...) -> None: ...

class CommitStateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
