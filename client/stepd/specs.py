"""Runs, rules, schedules and policies as they go over the wire.

`*_to_proto` and `*_from_proto` are each other's inverse. Rules and schedules are generic: a name and its fields, so
that a new one touches neither the contract nor this file. What comes off the wire is checked by the dataclasses
themselves, as strictly as what a user types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, TypeAlias, TypeVar

from stepd import limits
from stepd.averages import EMA, SWA, Average
from stepd.definitions import DTYPES, DType, GroupSpec, ParameterSpec, RunSpec, master_dtype
from stepd.errors import DtypeMismatch, InvalidArgument, ResourceExhausted
from stepd.policies import AnyClip, AnySync, Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Sync, Wire
from stepd.rules import Rule
from stepd.schedules import Schedule
from stepd.settings import Settings, check_field_names, detail, field_kinds, refuse, shown
from stepd.v1 import run_pb2

__all__ = [
    "AnyClip",
    "GroupSpec",
    "Optimizer",
    "ParameterSpec",
    "RunSpec",
    "Schedule",
    "Sync",
    "average_from_proto",
    "average_to_proto",
    "clip_from_proto",
    "clip_to_proto",
    "dtype_from_proto",
    "dtype_to_proto",
    "group_from_proto",
    "group_to_proto",
    "hyperparameter_from_proto",
    "hyperparameter_to_proto",
    "master_dtype",
    "optimizer_from_proto",
    "optimizer_to_proto",
    "run_from_proto",
    "run_to_proto",
    "schedule_from_proto",
    "schedule_to_proto",
    "sync_from_proto",
    "sync_to_proto",
]

Optimizer: TypeAlias = Rule
SettingsT = TypeVar("SettingsT", bound=Settings)

_DTYPE_NUMBERS: Final[Mapping[DType, run_pb2.DType]] = dict(
    zip(
        DTYPES,
        (run_pb2.D_TYPE_FLOAT64, run_pb2.D_TYPE_FLOAT32, run_pb2.D_TYPE_FLOAT16, run_pb2.D_TYPE_BFLOAT16),
        strict=True,
    )
)
_REDUCTIONS: Final = {
    "mean": run_pb2.REDUCTION_MEAN,
    "sum": run_pb2.REDUCTION_SUM,
    "weighted": run_pb2.REDUCTION_WEIGHTED,
}
_ON_NONFINITE: Final = {
    "skip": run_pb2.NONFINITE_POLICY_SKIP,
    "quarantine": run_pb2.NONFINITE_POLICY_QUARANTINE,
    "error": run_pb2.NONFINITE_POLICY_ERROR,
}
_DAMPINGS: Final = {None: run_pb2.DAMPING_UNSPECIFIED, "inverse": run_pb2.DAMPING_INVERSE}
_MISSING: Final = {"skip": run_pb2.MISSING_POLICY_SKIP, "error": run_pb2.MISSING_POLICY_ERROR}

# Its spec and its layout go into one message; this leaves the layout room.
_PLAIN: Final = Wire().gradients
_SPEC_BYTES_MAX: Final = limits.MESSAGE_BYTES_MAX // 2


# --- Rules and schedules ----------------------------------------------------------------------------------------------


def optimizer_to_proto(optimizer: Optimizer) -> run_pb2.OptimizerSpec:
    return run_pb2.OptimizerSpec(rule=type(optimizer).__name__, hyperparameters=_values(optimizer))


def optimizer_from_proto(message: run_pb2.OptimizerSpec) -> Optimizer:
    return _settings(Rule.registry, "optimizer", message.rule, message.hyperparameters)


def schedule_to_proto(schedule: Schedule) -> run_pb2.ScheduleSpec:
    return run_pb2.ScheduleSpec(rule=type(schedule).__name__, arguments=_values(schedule))


def schedule_from_proto(message: run_pb2.ScheduleSpec) -> Schedule:
    return _settings(Schedule.registry, "schedule", message.rule, message.arguments)


def _values(settings: Settings) -> dict[str, run_pb2.Hyperparameter]:
    """Fields by name; one that is None is absent."""
    named = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: _value(value) for name, value in named.items() if value is not None}


def hyperparameter_to_proto(value: object) -> run_pb2.Hyperparameter:
    """One value of a field of a rule."""
    return _value(value)


def hyperparameter_from_proto(message: run_pb2.Hyperparameter) -> object:
    return _plain(message)


def _value(value: object) -> run_pb2.Hyperparameter:
    if isinstance(value, bool):
        return run_pb2.Hyperparameter(flag=value)
    elif isinstance(value, int | float):
        return run_pb2.Hyperparameter(number=value)
    elif isinstance(value, str):
        return run_pb2.Hyperparameter(text=value)
    elif isinstance(value, Schedule):
        return run_pb2.Hyperparameter(schedule=schedule_to_proto(value))
    elif value is None:
        return run_pb2.Hyperparameter()
    assert isinstance(value, tuple), f"a field of a type that has no form on the wire: {value!r}"
    if value and all(isinstance(item, str) for item in value):
        return run_pb2.Hyperparameter(texts=run_pb2.TextList(values=value))
    elif all(isinstance(item, int | float) for item in value):
        return run_pb2.Hyperparameter(numbers=run_pb2.NumberList(values=value))
    return run_pb2.Hyperparameter(list=run_pb2.HyperparameterList(values=[_value(item) for item in value]))


def _settings(
    registry: Mapping[str, type[SettingsT]], what: str, name: str, sent: Mapping[str, run_pb2.Hyperparameter]
) -> SettingsT:
    """A rule or a schedule from its name and its values; its own constructor checks types and ranges."""
    cls = registry.get(name)
    if cls is None or name.startswith("_"):
        known = ", ".join(sorted(known for known in registry if not known.startswith("_")))
        raise InvalidArgument(
            f"no {what} of the name {shown(name)}; this version has {known}",
            reason="UNKNOWN_RULE",
            field=what,
            expected=known,
            given=detail(name),
        )
    check_field_names(cls, sent)
    values: dict[str, Any] = {}
    for field, kind in field_kinds(cls).items():
        if field in sent:
            values[field] = _plain(sent[field])
        elif _may_be_none(kind):
            values[field] = None
        else:
            # A default would hide that the sender's version of the rule is another one.
            refuse(name, field, None, "given")
    return cls(**values)


def _plain(message: run_pb2.Hyperparameter) -> object:
    held = message.WhichOneof("value")
    if held is None:
        return None
    elif held == "schedule":
        return schedule_from_proto(message.schedule)
    elif held == "list":
        return tuple(_plain(item) for item in message.list.values)
    value = getattr(message, held)
    return tuple(value.values) if held in ("numbers", "texts") else value


def _may_be_none(kind: Any) -> bool:
    return type(None) in getattr(kind, "__args__", ())


# --- Policies ---------------------------------------------------------------------------------------------------------


def clip_to_proto(clip: AnyClip) -> run_pb2.ClipSpec:
    both = Clip.of(clip)
    message = run_pb2.ClipSpec()
    if both.value is not None:
        message.max_value = both.value.max_value
    if both.norm is not None:
        message.max_norm = both.norm.max_norm
        message.norm_type = both.norm.norm_type
    return message


def clip_from_proto(message: run_pb2.ClipSpec) -> AnyClip:
    """The clip as a user would write it; `Clip.of` gives the form that holds both limits."""
    norm = value = None
    if message.HasField("max_norm"):
        norm = ClipNorm(message.max_norm, message.norm_type if message.HasField("norm_type") else 2.0)
    elif message.HasField("norm_type"):
        refuse("Clip", "norm_type", message.norm_type, "absent without max_norm")
    if message.HasField("max_value"):
        value = ClipValue(message.max_value)
    return Clip(norm, value).simplest()


def sync_to_proto(sync: AnySync) -> run_pb2.SyncSpec:
    if isinstance(sync, Async):
        asynchronous = run_pb2.AsyncSpec(max_staleness=sync.max_staleness, damping=_DAMPINGS[sync.damping])
        return run_pb2.SyncSpec(asynchronous=asynchronous)
    elif isinstance(sync, BoundedStaleness):
        return run_pb2.SyncSpec(
            bounded=run_pb2.BoundedStalenessSpec(workers=sync.workers, staleness=sync.staleness),
        )
    return run_pb2.SyncSpec(
        workers=sync.workers,
        reduction=_REDUCTIONS[sync.reduce],
        deterministic=sync.deterministic,
        quorum=sync.quorum,
        grace=sync.grace,
    )


def sync_from_proto(message: run_pb2.SyncSpec) -> AnySync:
    held = message.WhichOneof("turns")
    if held is not None:
        for field, _ in message.ListFields():
            if field.name != held:
                refuse("sync", field.name, getattr(message, field.name), f"unset together with {held}")
    if held == "asynchronous":
        limited = message.asynchronous.HasField("max_staleness")
        return Async(
            max_staleness=message.asynchronous.max_staleness if limited else None,
            damping=_word(_DAMPINGS, "Async", "damping", message.asynchronous.damping),
        )
    elif held == "bounded":
        return BoundedStaleness(message.bounded.workers, message.bounded.staleness)
    return Sync(
        workers=message.workers if message.HasField("workers") else None,
        quorum=message.quorum if message.HasField("quorum") else None,
        grace=message.grace,
        reduce=_word(_REDUCTIONS, "Sync", "reduction", message.reduction),
        deterministic=message.deterministic,
    )


def average_to_proto(average: Average) -> run_pb2.AverageSpec:
    if isinstance(average, EMA):
        return run_pb2.AverageSpec(exponential=run_pb2.ExponentialAverage(decay=average.decay))
    return run_pb2.AverageSpec(equal=run_pb2.EqualAverage(start=average.start, every=average.every))


def average_from_proto(message: run_pb2.AverageSpec) -> Average:
    held = message.WhichOneof("average")
    if held == "exponential":
        return EMA(message.exponential.decay)
    elif held != "equal":
        refuse("run", "average", held, "exponential or equal")
    return SWA(message.equal.start, message.equal.every)


def _word(words: Mapping[Any, int], thing: str, field: str, number: int) -> Any:
    """The word of an enum's number. Any: it is one of the Literal that the field takes."""
    numbers = {its_number: word for word, its_number in words.items()}
    if number not in numbers:
        expected = ", ".join(f"{its_number} ({word})" for word, its_number in words.items())
        refuse(thing, field, number, f"one of {expected}")
    return numbers[number]


# --- Whole runs -------------------------------------------------------------------------------------------------------


def group_to_proto(group: GroupSpec) -> run_pb2.GroupSpec:
    return run_pb2.GroupSpec(
        optimizer=optimizer_to_proto(group.optimizer),
        schedule=schedule_to_proto(group.schedule) if group.schedule else None,
        clip=clip_to_proto(group.clip) if group.clip else None,
    )


def group_from_proto(message: run_pb2.GroupSpec) -> GroupSpec:
    return GroupSpec(
        optimizer=optimizer_from_proto(message.optimizer),
        schedule=schedule_from_proto(message.schedule) if message.HasField("schedule") else None,
        clip=Clip.of(clip_from_proto(message.clip)) if message.HasField("clip") else None,
    )


def run_to_proto(run: RunSpec) -> run_pb2.RunSpec:
    message = run_pb2.RunSpec(
        name=run.name,
        parameters=map(parameter_to_proto, run.parameters),
        groups=[group_to_proto(group) for group in run.groups],
        schedule=schedule_to_proto(run.schedule) if run.schedule else None,
        clip=clip_to_proto(run.clip) if run.clip else None,
        sync=sync_to_proto(run.sync),
        on_nonfinite=_ON_NONFINITE[run.on_nonfinite],
        missing=_MISSING[run.missing],
        average=average_to_proto(run.average) if run.average else None,
        optimizer=optimizer_to_proto(run.optimizer) if run.optimizer else None,
        gradient_encoding="" if run.wire.gradients == _PLAIN else run.wire.gradients,
        parameter_encoding="" if run.wire.parameters == _PLAIN else run.wire.parameters,
    )
    if (given := message.ByteSize()) > _SPEC_BYTES_MAX:
        raise ResourceExhausted(
            f"run {run.name!r}: its spec must fit one message of {_SPEC_BYTES_MAX} bytes, got {given}: "
            "shorten the parameters' names",
            run=run.name,
            expected=_SPEC_BYTES_MAX,
            given=given,
        )
    return message


def run_from_proto(message: run_pb2.RunSpec) -> RunSpec:
    thing = f"run {shown(message.name)}"
    return RunSpec(
        name=message.name,
        parameters=parameters_from_proto(message),
        groups=tuple(group_from_proto(group) for group in message.groups),
        schedule=schedule_from_proto(message.schedule) if message.HasField("schedule") else None,
        clip=Clip.of(clip_from_proto(message.clip)) if message.HasField("clip") else None,
        sync=sync_from_proto(message.sync),
        on_nonfinite=_word(_ON_NONFINITE, thing, "on_nonfinite", message.on_nonfinite),
        missing=_word(_MISSING, thing, "missing", message.missing),
        average=average_from_proto(message.average) if message.HasField("average") else None,
        optimizer=optimizer_from_proto(message.optimizer) if message.HasField("optimizer") else None,
        wire=Wire(message.gradient_encoding or _PLAIN, message.parameter_encoding or _PLAIN),
    )


def parameter_to_proto(parameter: ParameterSpec) -> run_pb2.ParameterSpec:
    return run_pb2.ParameterSpec(
        name=parameter.name,
        shape=parameter.shape,
        dtype=dtype_to_proto(parameter.dtype),
        group=parameter.group,
    )


def parameters_from_proto(message: run_pb2.RunSpec) -> tuple[ParameterSpec, ...]:
    return tuple(_parameter_from_proto(parameter) for parameter in message.parameters)


def dtype_to_proto(dtype: DType) -> run_pb2.DType:
    return _DTYPE_NUMBERS[dtype]


def dtype_from_proto(number: run_pb2.DType, thing: str) -> DType:
    """The dtype of an enum's number, or DtypeMismatch naming the thing."""
    for dtype, its_number in _DTYPE_NUMBERS.items():
        if number == its_number:
            return dtype
    known = ", ".join(f"{its_number} ({dtype})" for dtype, its_number in _DTYPE_NUMBERS.items())
    raise DtypeMismatch(
        f"{thing}: dtype must be one of {known}, got {number}", thing=thing, expected=known, given=int(number)
    )


def _parameter_from_proto(message: run_pb2.ParameterSpec) -> ParameterSpec:
    dtype = dtype_from_proto(message.dtype, f"parameter {shown(message.name)}")
    return ParameterSpec(message.name, tuple(message.shape), dtype, message.group)
