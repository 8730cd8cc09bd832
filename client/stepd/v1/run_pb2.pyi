from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    D_TYPE_UNSPECIFIED: _ClassVar[DType]
    D_TYPE_FLOAT32: _ClassVar[DType]
    D_TYPE_FLOAT64: _ClassVar[DType]
    D_TYPE_FLOAT16: _ClassVar[DType]
    D_TYPE_BFLOAT16: _ClassVar[DType]

class Reduction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REDUCTION_UNSPECIFIED: _ClassVar[Reduction]
    REDUCTION_MEAN: _ClassVar[Reduction]
    REDUCTION_SUM: _ClassVar[Reduction]
    REDUCTION_WEIGHTED: _ClassVar[Reduction]

class Damping(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DAMPING_UNSPECIFIED: _ClassVar[Damping]
    DAMPING_INVERSE: _ClassVar[Damping]

class NonfinitePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONFINITE_POLICY_UNSPECIFIED: _ClassVar[NonfinitePolicy]
    NONFINITE_POLICY_SKIP: _ClassVar[NonfinitePolicy]
    NONFINITE_POLICY_QUARANTINE: _ClassVar[NonfinitePolicy]
    NONFINITE_POLICY_ERROR: _ClassVar[NonfinitePolicy]

class MissingPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISSING_POLICY_UNSPECIFIED: _ClassVar[MissingPolicy]
    MISSING_POLICY_SKIP: _ClassVar[MissingPolicy]
    MISSING_POLICY_ERROR: _ClassVar[MissingPolicy]
D_TYPE_UNSPECIFIED: DType
D_TYPE_FLOAT32: DType
D_TYPE_FLOAT64: DType
D_TYPE_FLOAT16: DType
D_TYPE_BFLOAT16: DType
REDUCTION_UNSPECIFIED: Reduction
REDUCTION_MEAN: Reduction
REDUCTION_SUM: Reduction
REDUCTION_WEIGHTED: Reduction
DAMPING_UNSPECIFIED: Damping
DAMPING_INVERSE: Damping
NONFINITE_POLICY_UNSPECIFIED: NonfinitePolicy
NONFINITE_POLICY_SKIP: NonfinitePolicy
NONFINITE_POLICY_QUARANTINE: NonfinitePolicy
NONFINITE_POLICY_ERROR: NonfinitePolicy
MISSING_POLICY_UNSPECIFIED: MissingPolicy
MISSING_POLICY_SKIP: MissingPolicy
MISSING_POLICY_ERROR: MissingPolicy

class ParameterSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype", "group")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: DType
    group: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[DType, str]] = ..., group: _Optional[int] = ...) -> None: ...

class Hyperparameter(_message.Message):
    __slots__ = ("number", "flag", "text", "numbers", "texts", "schedule", "list")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    number: float
    flag: bool
    text: str
    numbers: NumberList
    texts: TextList
    schedule: ScheduleSpec
    list: HyperparameterList
    def __init__(self, number: _Optional[float] = ..., flag: bool = ..., text: _Optional[str] = ..., numbers: _Optional[_Union[NumberList, _Mapping]] = ..., texts: _Optional[_Union[TextList, _Mapping]] = ..., schedule: _Optional[_Union[ScheduleSpec, _Mapping]] = ..., list: _Optional[_Union[HyperparameterList, _Mapping]] = ...) -> None: ...

class NumberList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class TextList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class HyperparameterList(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Hyperparameter]
    def __init__(self, values: _Optional[_Iterable[_Union[Hyperparameter, _Mapping]]] = ...) -> None: ...

class OptimizerSpec(_message.Message):
    __slots__ = ("rule", "hyperparameters")
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Hyperparameter
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Hyperparameter, _Mapping]] = ...) -> None: ...
    RULE_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    rule: str
    hyperparameters: _containers.MessageMap[str, Hyperparameter]
    def __init__(self, rule: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, Hyperparameter]] = ...) -> None: ...

class ScheduleSpec(_message.Message):
    __slots__ = ("rule", "arguments")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Hyperparameter
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Hyperparameter, _Mapping]] = ...) -> None: ...
    RULE_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    rule: str
    arguments: _containers.MessageMap[str, Hyperparameter]
    def __init__(self, rule: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Hyperparameter]] = ...) -> None: ...

class ClipSpec(_message.Message):
    __slots__ = ("max_value", "max_norm", "norm_type")
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAX_NORM_FIELD_NUMBER: _ClassVar[int]
    NORM_TYPE_FIELD_NUMBER: _ClassVar[int]
    max_value: float
    max_norm: float
    norm_type: float
    def __init__(self, max_value: _Optional[float] = ..., max_norm: _Optional[float] = ..., norm_type: _Optional[float] = ...) -> None: ...

class SyncSpec(_message.Message):
    __slots__ = ("workers", "reduction", "deterministic", "quorum", "grace", "asynchronous", "bounded")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    ASYNCHRONOUS_FIELD_NUMBER: _ClassVar[int]
    BOUNDED_FIELD_NUMBER: _ClassVar[int]
    workers: int
    reduction: Reduction
    deterministic: bool
    quorum: int
    grace: float
    asynchronous: AsyncSpec
    bounded: BoundedStalenessSpec
    def __init__(self, workers: _Optional[int] = ..., reduction: _Optional[_Union[Reduction, str]] = ..., deterministic: bool = ..., quorum: _Optional[int] = ..., grace: _Optional[float] = ..., asynchronous: _Optional[_Union[AsyncSpec, _Mapping]] = ..., bounded: _Optional[_Union[BoundedStalenessSpec, _Mapping]] = ...) -> None: ...

class AsyncSpec(_message.Message):
    __slots__ = ("max_staleness", "damping")
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    DAMPING_FIELD_NUMBER: _ClassVar[int]
    max_staleness: int
    damping: Damping
    def __init__(self, max_staleness: _Optional[int] = ..., damping: _Optional[_Union[Damping, str]] = ...) -> None: ...

class BoundedStalenessSpec(_message.Message):
    __slots__ = ("workers", "staleness")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    workers: int
    staleness: int
    def __init__(self, workers: _Optional[int] = ..., staleness: _Optional[int] = ...) -> None: ...

class AverageSpec(_message.Message):
    __slots__ = ("exponential", "equal")
    EXPONENTIAL_FIELD_NUMBER: _ClassVar[int]
    EQUAL_FIELD_NUMBER: _ClassVar[int]
    exponential: ExponentialAverage
    equal: EqualAverage
    def __init__(self, exponential: _Optional[_Union[ExponentialAverage, _Mapping]] = ..., equal: _Optional[_Union[EqualAverage, _Mapping]] = ...) -> None: ...

class ExponentialAverage(_message.Message):
    __slots__ = ("decay",)
    DECAY_FIELD_NUMBER: _ClassVar[int]
    decay: float
    def __init__(self, decay: _Optional[float] = ...) -> None: ...

class EqualAverage(_message.Message):
    __slots__ = ("start", "every")
    START_FIELD_NUMBER: _ClassVar[int]
    EVERY_FIELD_NUMBER: _ClassVar[int]
    start: int
    every: int
    def __init__(self, start: _Optional[int] = ..., every: _Optional[int] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("optimizer", "schedule", "clip")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    clip: ClipSpec
    def __init__(self, optimizer: _Optional[_Union[OptimizerSpec, _Mapping]] = ..., schedule: _Optional[_Union[ScheduleSpec, _Mapping]] = ..., clip: _Optional[_Union[ClipSpec, _Mapping]] = ...) -> None: ...

class RunSpec(_message.Message):
    __slots__ = ("name", "parameters", "groups", "schedule", "clip", "sync", "on_nonfinite", "missing", "average", "optimizer", "gradient_encoding", "parameter_encoding")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    ON_NONFINITE_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ENCODING_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_ENCODING_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.RepeatedCompositeFieldContainer[ParameterSpec]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpec]
    schedule: ScheduleSpec
    clip: ClipSpec
    sync: SyncSpec
    on_nonfinite: NonfinitePolicy
    missing: MissingPolicy
    average: AverageSpec
    optimizer: OptimizerSpec
    gradient_encoding: str
    parameter_encoding: str
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Iterable[_Union[ParameterSpec, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[GroupSpec, _Mapping]]] = ..., schedule: _Optional[_Union[ScheduleSpec, _Mapping]] = ..., clip: _Optional[_Union[ClipSpec, _Mapping]] = ..., sync: _Optional[_Union[SyncSpec, _Mapping]] = ..., on_nonfinite: _Optional[_Union[NonfinitePolicy, str]] = ..., missing: _Optional[_Union[MissingPolicy, str]] = ..., average: _Optional[_Union[AverageSpec, _Mapping]] = ..., optimizer: _Optional[_Union[OptimizerSpec, _Mapping]] = ..., gradient_encoding: _Optional[str] = ..., parameter_encoding: _Optional[str] = ...) -> None: ...

class Slice(_message.Message):
    __slots__ = ("parameter", "start", "count")
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    parameter: int
    start: int
    count: int
    def __init__(self, parameter: _Optional[int] = ..., start: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class ShardLayout(_message.Message):
    __slots__ = ("slices", "target")
    SLICES_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    slices: _containers.RepeatedCompositeFieldContainer[Slice]
    target: str
    def __init__(self, slices: _Optional[_Iterable[_Union[Slice, _Mapping]]] = ..., target: _Optional[str] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("shards", "block_elements", "dtype", "version")
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedCompositeFieldContainer[ShardLayout]
    block_elements: int
    dtype: DType
    version: int
    def __init__(self, shards: _Optional[_Iterable[_Union[ShardLayout, _Mapping]]] = ..., block_elements: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., version: _Optional[int] = ...) -> None: ...
