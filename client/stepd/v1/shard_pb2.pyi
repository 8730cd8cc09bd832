from stepd.v1 import round_pb2 as _round_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReceiptStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RECEIPT_STATUS_UNSPECIFIED: _ClassVar[ReceiptStatus]
    RECEIPT_STATUS_ACCEPTED: _ClassVar[ReceiptStatus]
    RECEIPT_STATUS_DUPLICATE: _ClassVar[ReceiptStatus]
    RECEIPT_STATUS_LATE: _ClassVar[ReceiptStatus]
    RECEIPT_STATUS_STALE: _ClassVar[ReceiptStatus]
    RECEIPT_STATUS_QUARANTINED: _ClassVar[ReceiptStatus]
RECEIPT_STATUS_UNSPECIFIED: ReceiptStatus
RECEIPT_STATUS_ACCEPTED: ReceiptStatus
RECEIPT_STATUS_DUPLICATE: ReceiptStatus
RECEIPT_STATUS_LATE: ReceiptStatus
RECEIPT_STATUS_STALE: ReceiptStatus
RECEIPT_STATUS_QUARANTINED: ReceiptStatus

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ScaledValues(_message.Message):
    __slots__ = ("scales", "values")
    SCALES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    scales: bytes
    values: bytes
    def __init__(self, scales: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class SparseValues(_message.Message):
    __slots__ = ("places", "values")
    PLACES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    places: bytes
    values: bytes
    def __init__(self, places: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class EncodedChunk(_message.Message):
    __slots__ = ("offset", "count", "bfloat16", "float16", "int8", "sparse")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    BFLOAT16_FIELD_NUMBER: _ClassVar[int]
    FLOAT16_FIELD_NUMBER: _ClassVar[int]
    INT8_FIELD_NUMBER: _ClassVar[int]
    SPARSE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    count: int
    bfloat16: bytes
    float16: bytes
    int8: ScaledValues
    sparse: SparseValues
    def __init__(self, offset: _Optional[int] = ..., count: _Optional[int] = ..., bfloat16: _Optional[bytes] = ..., float16: _Optional[bytes] = ..., int8: _Optional[_Union[ScaledValues, _Mapping]] = ..., sparse: _Optional[_Union[SparseValues, _Mapping]] = ...) -> None: ...

class SharedChunk(_message.Message):
    __slots__ = ("offset", "count", "at")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    offset: int
    count: int
    at: int
    def __init__(self, offset: _Optional[int] = ..., count: _Optional[int] = ..., at: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("start", "count")
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    start: int
    count: int
    def __init__(self, start: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class LoadParametersHeader(_message.Message):
    __slots__ = ("run", "extension")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXTENSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    extension: str
    def __init__(self, run: _Optional[str] = ..., extension: _Optional[str] = ...) -> None: ...

class LoadParametersRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: LoadParametersHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[LoadParametersHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class LoadParametersResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StageStateHeader(_message.Message):
    __slots__ = ("run", "state_id", "updates", "scalars")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    run: str
    state_id: str
    updates: _containers.RepeatedScalarFieldContainer[int]
    scalars: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, run: _Optional[str] = ..., state_id: _Optional[str] = ..., updates: _Optional[_Iterable[int]] = ..., scalars: _Optional[_Iterable[float]] = ...) -> None: ...

class StageStateRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: StageStateHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[StageStateHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class StageStateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("run", "member", "id", "weight", "ranges", "layout_version", "sequence", "based_on")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BASED_ON_FIELD_NUMBER: _ClassVar[int]
    run: str
    member: _round_pb2.Member
    id: _round_pb2.RoundId
    weight: float
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    layout_version: int
    sequence: int
    based_on: int
    def __init__(self, run: _Optional[str] = ..., member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., id: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ..., weight: _Optional[float] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., layout_version: _Optional[int] = ..., sequence: _Optional[int] = ..., based_on: _Optional[int] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("header", "chunk", "shared", "encoded")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: Chunk
    shared: SharedChunk
    encoded: EncodedChunk
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., shared: _Optional[_Union[SharedChunk, _Mapping]] = ..., encoded: _Optional[_Union[EncodedChunk, _Mapping]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("status", "id", "step", "in_turn")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    IN_TURN_FIELD_NUMBER: _ClassVar[int]
    status: ReceiptStatus
    id: _round_pb2.RoundId
    step: int
    in_turn: bool
    def __init__(self, status: _Optional[_Union[ReceiptStatus, str]] = ..., id: _Optional[_Union[_round_pb2.RoundId, _Mapping]] = ..., step: _Optional[int] = ..., in_turn: bool = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("run", "round", "member", "ranges", "attempt", "step", "sent_away", "averaged", "layout_version", "state", "shared", "in_place", "encoding")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SENT_AWAY_FIELD_NUMBER: _ClassVar[int]
    AVERAGED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    member: _round_pb2.Member
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    attempt: int
    step: int
    sent_away: int
    averaged: bool
    layout_version: int
    state: bool
    shared: bool
    in_place: bool
    encoding: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., attempt: _Optional[int] = ..., step: _Optional[int] = ..., sent_away: _Optional[int] = ..., averaged: bool = ..., layout_version: _Optional[int] = ..., state: bool = ..., shared: bool = ..., in_place: bool = ..., encoding: _Optional[str] = ...) -> None: ...

class StateBuffer(_message.Message):
    __slots__ = ("group", "name", "count")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    group: int
    name: str
    count: int
    def __init__(self, group: _Optional[int] = ..., name: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class PullHeader(_message.Message):
    __slots__ = ("step", "round", "decision", "buffers", "updates", "scalars", "state_id", "counted", "counted_status")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    STATE_ID_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    COUNTED_STATUS_FIELD_NUMBER: _ClassVar[int]
    step: int
    round: int
    decision: _round_pb2.Decision
    buffers: _containers.RepeatedCompositeFieldContainer[StateBuffer]
    updates: _containers.RepeatedScalarFieldContainer[int]
    scalars: _containers.RepeatedScalarFieldContainer[float]
    state_id: str
    counted: int
    counted_status: ReceiptStatus
    def __init__(self, step: _Optional[int] = ..., round: _Optional[int] = ..., decision: _Optional[_Union[_round_pb2.Decision, _Mapping]] = ..., buffers: _Optional[_Iterable[_Union[StateBuffer, _Mapping]]] = ..., updates: _Optional[_Iterable[int]] = ..., scalars: _Optional[_Iterable[float]] = ..., state_id: _Optional[str] = ..., counted: _Optional[int] = ..., counted_status: _Optional[_Union[ReceiptStatus, str]] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("header", "chunk", "shared", "encoded")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    header: PullHeader
    chunk: Chunk
    shared: SharedChunk
    encoded: EncodedChunk
    def __init__(self, header: _Optional[_Union[PullHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., shared: _Optional[_Union[SharedChunk, _Mapping]] = ..., encoded: _Optional[_Union[EncodedChunk, _Mapping]] = ...) -> None: ...

class PushAndPullRequest(_message.Message):
    __slots__ = ("push", "pull")
    PUSH_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    push: _containers.RepeatedCompositeFieldContainer[PushRequest]
    pull: PullRequest
    def __init__(self, push: _Optional[_Iterable[_Union[PushRequest, _Mapping]]] = ..., pull: _Optional[_Union[PullRequest, _Mapping]] = ...) -> None: ...

class PushAndPullResponse(_message.Message):
    __slots__ = ("receipt", "pulled")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    receipt: PushResponse
    pulled: _containers.RepeatedCompositeFieldContainer[PullResponse]
    def __init__(self, receipt: _Optional[_Union[PushResponse, _Mapping]] = ..., pulled: _Optional[_Iterable[_Union[PullResponse, _Mapping]]] = ...) -> None: ...

class ShareMemoryOffer(_message.Message):
    __slots__ = ("run", "member", "layout_version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    member: _round_pb2.Member
    layout_version: int
    def __init__(self, run: _Optional[str] = ..., member: _Optional[_Union[_round_pb2.Member, _Mapping]] = ..., layout_version: _Optional[int] = ...) -> None: ...

class ShareMemoryProof(_message.Message):
    __slots__ = ("process", "descriptor", "start", "count", "secret")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    process: int
    descriptor: int
    start: int
    count: int
    secret: int
    def __init__(self, process: _Optional[int] = ..., descriptor: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., secret: _Optional[int] = ...) -> None: ...

class ShareMemoryRequest(_message.Message):
    __slots__ = ("offer", "proof")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    offer: ShareMemoryOffer
    proof: ShareMemoryProof
    def __init__(self, offer: _Optional[_Union[ShareMemoryOffer, _Mapping]] = ..., proof: _Optional[_Union[ShareMemoryProof, _Mapping]] = ...) -> None: ...

class ShareMemoryChallenge(_message.Message):
    __slots__ = ("secret",)
    SECRET_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    def __init__(self, secret: _Optional[bytes] = ...) -> None: ...

class ShareMemoryTerms(_message.Message):
    __slots__ = ("process", "parameters", "journal", "begun")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    process: int
    parameters: int
    journal: int
    begun: int
    def __init__(self, process: _Optional[int] = ..., parameters: _Optional[int] = ..., journal: _Optional[int] = ..., begun: _Optional[int] = ...) -> None: ...

class ShareMemoryResponse(_message.Message):
    __slots__ = ("challenge", "terms")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    challenge: ShareMemoryChallenge
    terms: ShareMemoryTerms
    def __init__(self, challenge: _Optional[_Union[ShareMemoryChallenge, _Mapping]] = ..., terms: _Optional[_Union[ShareMemoryTerms, _Mapping]] = ...) -> None: ...
