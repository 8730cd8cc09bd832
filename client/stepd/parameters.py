"""From what users give to what travels: parameters and groups into a run's spec, gradients into checked arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from operator import attrgetter
from typing import Any, Final

import ml_dtypes
import numpy as np

from stepd import encodings
from stepd.arrays import DTYPE_OF, check_finite, read_array, to_master
from stepd.averages import Average
from stepd.definitions import (
    DType,
    GroupSpec,
    ParameterSpec,
    RunSpec,
    check_master,
    check_parameter_name,
    master_dtype,
)
from stepd.errors import (
    DtypeMismatch,
    MissingGradient,
    ShapeMismatch,
    UnknownParameter,
)
from stepd.policies import AnyClip, AnySync, Clip, Missing, OnNonfinite, Sync, Wire
from stepd.rules import Array, Rule
from stepd.schedules import Schedule
from stepd.settings import check_field_names, detail, refuse, shown
from stepd.specs import run_to_proto
from stepd.v1 import run_pb2

# Parameters of 16 bits have a 32-bit master, and a gradient that was summed in 32 bits need not be rounded for it.
_SIXTEEN_BITS: Final = (np.float16, ml_dtypes.bfloat16)
_DTYPE, _SHAPE, _IS_CARRAY = attrgetter("dtype"), attrgetter("shape"), attrgetter("flags.carray")


class ParamGroup:
    """Parameters with hyperparameters of their own.

    Args:
        params: name to array.
        schedule: of this group; None: the run's.
        clip: a limit for this group's gradient, before the run's.
        optimizer: of this group; None: the run's.
        **overrides: fields of the optimizer, such as `lr` or `weight_decay`.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        *,
        schedule: Schedule | None = None,
        clip: AnyClip | None = None,
        optimizer: Rule | None = None,
        **overrides: Any,
    ) -> None:
        if not isinstance(params, Mapping):
            refuse("ParamGroup", "params", params, "a mapping of name to array")
        self.params = dict(params)
        self.schedule = _schedule("ParamGroup", schedule)
        self.clip = _clip("ParamGroup", clip)
        self.optimizer = None if optimizer is None else _optimizer("ParamGroup", optimizer)
        self.overrides = overrides
        if self.optimizer is not None:
            self.optimizer = self._override(self.optimizer)  # before it travels anywhere: the mistake is on this line

    def __repr__(self) -> str:
        given = [f"params={{{len(self.params)} parameters}}"]
        given += [f"{name}={value!r}" for name in ("schedule", "clip", "optimizer") if (value := getattr(self, name))]
        given += [f"{name}={value!r}" for name, value in self.overrides.items()]
        return f"ParamGroup({', '.join(given)})"

    def spec(self, run_optimizer: Rule) -> GroupSpec:
        """The group with the run's optimizer where it has none of its own, its own values put in."""
        optimizer = self.optimizer if self.optimizer is not None else self._override(run_optimizer)
        return GroupSpec(optimizer=optimizer, schedule=self.schedule, clip=self.clip)

    def _override(self, optimizer: Rule) -> Rule:
        check_field_names(type(optimizer), self.overrides)
        return replace(optimizer, **self.overrides) if self.overrides else optimizer


def define_run(
    name: str,
    params: Mapping[str, Any] | Iterable[ParamGroup] | ParamGroup,
    *,
    optimizer: Rule,
    schedule: Schedule | None = None,
    clip: AnyClip | None = None,
    sync: AnySync | None = None,
    on_nonfinite: OnNonfinite = "skip",
    missing: Missing = "skip",
    average: Average | None = None,
    wire: str | Wire = "float32",
) -> tuple[run_pb2.RunSpec, list[Array]]:
    """A run's spec and its initial parameters by id, from the arguments of `Client.create_run`.

    Returns:
        The spec as a message, and arrays of the masters' dtype, C-contiguous and native.

    Raises:
        InvalidArgument: a name, hyperparameter or policy is impossible, or (NONFINITE_PARAMETER) an element is a NaN or
            an infinity.
        DtypeMismatch: a parameter is no array of floating-point numbers.
        OverlappingGroups: a parameter stands in two groups.
        ResourceExhausted: over a limit.
    """
    thing = f"run {shown(name)}"
    run_optimizer = _optimizer(thing, optimizer)
    groups = _groups(params)
    arrays: list[Array] = []
    parameters: list[ParameterSpec] = []
    for index, group in enumerate(groups):
        for key, value in group.params.items():
            parameter = check_parameter_name(key)
            array = read_array(parameter, value)
            arrays.append(array)
            parameters.append(ParameterSpec(parameter, array.shape, DTYPE_OF[array.dtype.type], index))
    spec = RunSpec(
        name=name,
        parameters=tuple(parameters),
        groups=tuple(group.spec(run_optimizer) for group in groups),
        schedule=_schedule(thing, schedule),
        clip=_clip(thing, clip),
        sync=check_sync(thing, sync),
        on_nonfinite=on_nonfinite,
        missing=missing,
        average=_average(thing, average),
        optimizer=run_optimizer,
        wire=_wire(thing, wire),
    )
    message = run_to_proto(spec)
    dtype = spec.master  # asks all parameters
    masters = [to_master(array, dtype) for array in arrays]
    for described, master in zip(parameters, masters, strict=True):
        check_finite(described.name, master)
    return message, masters


def define_group(group: object, run: RunSpec) -> tuple[GroupSpec, tuple[ParameterSpec, ...], list[Array]]:
    """What `Run.add_param_group` adds: the group, its parameters (as those of the run's next group) and their values.

    Raises as `define_run` does. Whether names overlap is checked where all are known, by the coordinator.
    """
    thing = f"run {shown(run.name)}"
    if not isinstance(group, ParamGroup):
        refuse(thing, "group", group, "a ParamGroup")
    if not group.params:
        refuse(thing, "group", group, "a ParamGroup of at least one parameter")
    arrays = {check_parameter_name(name): read_array(name, value) for name, value in group.params.items()}
    parameters = tuple(
        ParameterSpec(name, array.shape, DTYPE_OF[array.dtype.type], len(run.groups)) for name, array in arrays.items()
    )
    check_master(run, parameters)
    masters = [to_master(array, run.master) for array in arrays.values()]
    for described, master in zip(parameters, masters, strict=True):
        check_finite(described.name, master)
    return group.spec(run.optimizer or run.groups[0].optimizer), parameters, masters


def _groups(params: object) -> list[ParamGroup]:
    if isinstance(params, Mapping):
        return [ParamGroup(params)]
    elif isinstance(params, ParamGroup):
        return [params]
    elif not isinstance(params, Iterable) or isinstance(params, str | bytes):
        refuse("create_run", "params", params, "a mapping of name to array, or a sequence of ParamGroup")
    groups = list(params)
    for position, group in enumerate(groups):
        if not isinstance(group, ParamGroup):
            refuse("create_run", f"params[{position}]", group, "a ParamGroup")
    return groups


def _optimizer(thing: str, optimizer: object) -> Rule:
    if not isinstance(optimizer, Rule):
        refuse(thing, "optimizer", optimizer, "an optimizer such as stepd.AdamW(lr=1e-3)")
    return optimizer


def _schedule(thing: str, schedule: object) -> Schedule | None:
    if schedule is not None and not isinstance(schedule, Schedule):
        refuse(thing, "schedule", schedule, "a schedule such as stepd.Cosine(total_steps=1000), or None")
    return schedule


def _clip(thing: str, clip: object) -> Clip | None:
    if clip is not None and not isinstance(clip, AnyClip):
        refuse(thing, "clip", clip, "stepd.ClipNorm, ClipValue, Clip or None")
    return None if clip is None else Clip.of(clip)


def _wire(thing: str, wire: object) -> Wire:
    if isinstance(wire, str):
        return Wire(gradients=wire)
    if not isinstance(wire, Wire):
        refuse(thing, "wire", wire, f"stepd.Wire, {encodings.GRADIENTS}")
    return wire


def _average(thing: str, average: object) -> Average | None:
    if average is not None and not isinstance(average, Average):
        refuse(thing, "average", average, "stepd.EMA, stepd.SWA or None")
    return average


def check_sync(thing: str, sync: object) -> AnySync:
    """A policy; None is `Sync()`."""
    if sync is not None and not isinstance(sync, AnySync):
        refuse(thing, "sync", sync, "stepd.Sync, Async, BoundedStaleness or None")
    return Sync() if sync is None else sync


class ParameterTable:
    """The parameters of a run, looked up by name; made once and used in every step.

    Attributes:
        specs: by id.
        ids: by name.
        master: the dtype of gradients and parameters on the servers.
        names, shapes: by id.
        native: all have that dtype.
    """

    def __init__(self, specs: Sequence[ParameterSpec]) -> None:
        self.specs = tuple(specs)
        self.ids = {spec.name: id_ for id_, spec in enumerate(self.specs)}
        self.master = master_dtype(spec.dtype for spec in self.specs)
        self.names = list(self.ids)
        self.shapes = [spec.shape for spec in self.specs]
        self.native = all(spec.dtype == self.master for spec in self.specs)

    def id_of(self, name: str) -> int:
        """The id of a name, or UnknownParameter."""
        id_ = self.ids.get(name)
        if id_ is None:
            near = get_close_matches(str(name), self.ids)
            names = [*near, *(known for known in self.ids if known not in near)][:5]
            expected = ", ".join(map(repr, names)) + (", ..." if len(self.ids) > len(names) else "")
            raise UnknownParameter(
                f"no parameter {shown(name)}; the run has {expected}",
                parameter=detail(name),
                expected=expected,
                given=detail(name),
            )
        return id_


def check_gradients(table: ParameterTable, grads: Mapping[str, Any], missing: Missing = "skip") -> dict[int, Array]:
    """A contribution as arrays that may be sent.

    Args:
        table: the run's parameters.
        grads: name to gradient; of the parameter's shape and dtype, or float32 for one of 16 bits. None: left out.
        missing: "error" refuses to leave any out.

    Returns:
        By id, ascending: C-contiguous native arrays of the masters' dtype, the caller's own memory where it is that
        already.
    """
    if not isinstance(grads, Mapping):
        refuse("gradients", "grads", grads, "a mapping of name to array")
    names, values = list(grads), list(grads.values())
    if table.native and names == table.names and _are_plain(values, table.shapes, table.master):
        return dict(enumerate(values))
    found: dict[int, Array] = {}
    for name, value in zip(names, values, strict=True):
        id_ = table.id_of(name)
        if value is not None:
            found[id_] = to_master(_check_gradient(table.specs[id_], value), table.master)
    if missing == "error":
        check_whole(table, found)
    ids = sorted(found)
    return found if ids == list(found) else {id_: found[id_] for id_ in ids}


def _are_plain(values: Sequence[Any], shapes: Sequence[tuple[int, ...]], dtype: DType) -> bool:
    """Whether they are arrays of these shapes that may be sent as they are.

    What is so nearly always is found out without a turn of the interpreter for each: there may be ten thousand.
    """
    return (
        set(map(type, values)) == {np.ndarray}
        and set(map(_DTYPE, values)) == {dtype}
        and list(map(_SHAPE, values)) == shapes
        and all(map(_IS_CARRAY, values))
    )


def check_whole(table: ParameterTable, held: Collection[int]) -> None:
    """Raise MissingGradient unless a contribution that holds these parameters holds all."""
    if len(held) < len(table.specs):
        absent = next(spec.name for id_, spec in enumerate(table.specs) if id_ not in held)
        raise MissingGradient(
            f"no gradient for parameter {absent!r}: the run takes only whole contributions; "
            f"expected {len(table.specs)} gradients, got {len(held)}",
            parameter=absent,
            expected=len(table.specs),
            given=len(held),
        )


def _check_gradient(spec: ParameterSpec, value: object) -> Array:
    array = value if type(value) is np.ndarray else read_array(spec.name, value, what="gradient of ")
    if array.shape != spec.shape:
        raise ShapeMismatch(
            f"gradient of parameter {spec.name!r}: shape must be {spec.shape}, got {array.shape}",
            parameter=spec.name,
            expected=spec.shape,
            given=array.shape,
        )
    given, expected = array.dtype.type, spec.dtype.type
    if given is not expected and not (given is np.float32 and expected in _SIXTEEN_BITS):
        takes = f"{spec.dtype} or float32" if expected in _SIXTEEN_BITS else str(spec.dtype)
        raise DtypeMismatch(
            f"gradient of parameter {spec.name!r}: dtype must be {takes}, got {array.dtype}",
            parameter=spec.name,
            expected=takes,
            given=str(array.dtype),
        )
    return array
