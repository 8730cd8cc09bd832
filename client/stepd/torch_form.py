"""The state of the optimizer in the form of `torch.optim.Optimizer.state_dict()`, with NumPy arrays for tensors. Pure.

    {"state": {0: {"step": ..., "exp_avg": ..., "exp_avg_sq": ...}, ...},
     "param_groups": [{"lr": ..., "betas": ..., ..., "params": [0, 1], "param_names": ["w", "b"]}]}

What torch has and stepd has not (`foreach`, `fused` and the like) is written with torch's defaults and passed over when
read. `step` is a float32 of no dimensions, as torch's; SGD and Muon have none. Tensors are read without torch's help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import ml_dtypes
import numpy as np

from stepd.buffers import Array
from stepd.definitions import ParameterSpec, RunSpec
from stepd.errors import DtypeMismatch, InvalidArgument, ShapeMismatch
from stepd.hyperparameters import with_hyperparameters
from stepd.limits import UPDATES_MAX
from stepd.rules import Adam, AdamW, Rule
from stepd.settings import field_kinds, refuse, shown
from stepd.state_space import OptimizerState

StateDict = dict[str, Any]

# Rules whose state has no count in torch.
_UNCOUNTED: Final = ("SGD", "Muon")
# torch makes their state with the optimizer, and misses it in one that is loaded without.
_EARLY: Final = ("Adagrad",)
# Scalars that torch keeps as float32, whatever the parameters are.
_FLOAT32: Final = ("eta", "mu", "mu_product")
_BY_GROUP: Final = ("params", "param_names")
_IMPLEMENTATION: Final = {"foreach": None, "capturable": False, "differentiable": False, "fused": None}
_PLAIN: Final = ("foreach", "capturable", "differentiable")
# Which of these torch writes, by rule.
_TORCH_ONLY: Final[Mapping[str, tuple[str, ...]]] = {
    "SGD": ("foreach", "differentiable", "fused"),
    "Adam": (*_PLAIN, "fused"),
    "AdamW": (*_PLAIN, "fused"),
    "Adagrad": ("foreach", "differentiable", "fused"),
    "Adafactor": ("foreach",),
    **dict.fromkeys(("Adamax", "NAdam", "RAdam", "RMSprop", "Adadelta", "ASGD", "Rprop"), _PLAIN),
}
_SIXTEEN_BITS: Final = (np.float16, ml_dtypes.bfloat16)
# float32 has every integer up to here.
_FLOAT32_INTEGER_MAX: Final = 1 << 24


# --- Writing ----------------------------------------------------------------------------------------------------------


def write(spec: RunSpec, state: OptimizerState, rates: Sequence[float]) -> StateDict:
    """The dict of a state.

    Args:
        spec: of the run.
        state: read from its shards.
        rates: by group, of the next step.
    """
    entries: dict[int, dict[str, Array]] = {}
    for id_, parameter in enumerate(spec.parameters):
        rule = spec.groups[parameter.group].optimizer
        if parameter.size and (state.updates[id_] or type(rule).__name__ in _EARLY):
            entry = _entry(rule, state, id_)
            if entry:
                entries[id_] = entry
    return {"state": entries, "param_groups": [_group(spec, g, rate) for g, rate in enumerate(rates)]}


def _entry(rule: Rule, state: OptimizerState, id_: int) -> dict[str, Array]:
    entry: dict[str, Array] = {}
    if type(rule).__name__ not in _UNCOUNTED:
        count = state.updates[id_]
        entry["step"] = np.array(count, np.float32 if count <= _FLOAT32_INTEGER_MAX else np.float64)
    for scalar, value in zip(rule.scalars(), state.scalars[id_], strict=True):
        entry[scalar.name] = np.array(value, np.float32 if scalar.name in _FLOAT32 else np.float64)
    for buffer, array in zip(rule.buffers(), state.buffers[id_], strict=True):
        if array is not None:
            entry[buffer.name] = array
    return entry


def _group(spec: RunSpec, index: int, rate: float) -> dict[str, Any]:
    rule = spec.groups[index].optimizer
    group = {name: getattr(rule, name) for name in field_kinds(type(rule))} | {"lr": rate}
    group |= {name: _IMPLEMENTATION[name] for name in _TORCH_ONLY.get(type(rule).__name__, ())}
    if isinstance(rule, Adam):
        group["decoupled_weight_decay"] = isinstance(rule, AdamW)
    if rate != rule.lr:
        group["initial_lr"] = rule.lr  # where torch's schedulers look for the base
    ids = [id_ for id_, parameter in enumerate(spec.parameters) if parameter.group == index]
    group["params"] = ids
    group["param_names"] = [spec.parameters[id_].name for id_ in ids]
    return group


# --- Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """Attributes:
    state: of every parameter.
    hyperparameters: by group, those that are given.
    """

    state: OptimizerState
    hyperparameters: list[dict[str, Any]]


def read(spec: RunSpec, state_dict: object) -> Loaded:
    """A state from its dict, checked against the run that is to take it.

    Raises:
        ShapeMismatch, DtypeMismatch: a buffer does not fit its parameter.
        InvalidArgument: anything else does not fit.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        given = list(state_dict) if isinstance(state_dict, Mapping) else type(state_dict).__name__
        refuse("state_dict", "form", given, 'a dict with "state" and "param_groups", as torch.optim makes it')
    groups, entries = state_dict["param_groups"], state_dict["state"]
    if len(groups) != len(spec.groups):
        refuse("state_dict", "param_groups", len(groups), f"{len(spec.groups)} groups, as the run has")
    hyperparameters = [_hyperparameters(spec, g, group) for g, group in enumerate(groups)]
    index_of = _indices(spec, groups)
    unknown = [index for index in entries if index not in index_of.values()]
    if unknown:
        refuse("state_dict", "state", unknown[0], f"one of the indices in param_groups, 0 to {len(index_of) - 1}")
    state = OptimizerState([], [], [])
    for id_, parameter in enumerate(spec.parameters):
        _read_entry(spec, parameter, entries.get(index_of[id_]) or {}, state)
    return Loaded(state, hyperparameters)


def _indices(spec: RunSpec, groups: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    """By parameter: its index in the dict. By name where the names are the run's own, else by place, as torch does."""
    found: dict[int, Any] = {}
    for g, group in enumerate(groups):
        ids = [id_ for id_, parameter in enumerate(spec.parameters) if parameter.group == g]
        indices = list(group.get("params", ()))
        if len(indices) != len(ids):
            refuse(f"state_dict: group {g}", "params", len(indices), f"{len(ids)} parameters, as the run has")
        names = list(group.get("param_names") or ())
        own = [spec.parameters[id_].name for id_ in ids]
        if len(names) == len(set(names)) == len(indices) and set(names) == set(own):
            by_name = dict(zip(names, indices, strict=True))
            indices = [by_name[name] for name in own]
        found |= zip(ids, indices, strict=True)
    return found


def _hyperparameters(spec: RunSpec, index: int, group: Mapping[str, Any]) -> dict[str, Any]:
    """What a group says of its rule. What says that it was another rule's is refused, the rest is passed over."""
    rule = spec.groups[index].optimizer
    own, thing = field_kinds(type(rule)), f"state_dict: group {index}"
    others = {
        name for kind in Rule.registry.values() if not kind.__name__.startswith("_") for name in field_kinds(kind)
    }
    given: dict[str, Any] = {}
    for name, value in group.items():
        if name in own:
            given[name] = _plain(value)
        elif name == "decoupled_weight_decay" and isinstance(rule, Adam):
            if bool(value) != isinstance(rule, AdamW):
                _another_rule(thing, rule, f"decoupled_weight_decay={bool(value)}")
        elif name in others and name not in _BY_GROUP and not (name == "maximize" and not value):
            _another_rule(thing, rule, f"{name}={shown(value)}")
    with_hyperparameters(thing, rule, given)
    return given


def _another_rule(thing: str, rule: Rule, found: str) -> NoReturn:
    name = type(rule).__name__
    raise InvalidArgument(
        f"{thing}: {found} is of another rule, the run has {name}", thing=thing, expected=name, given=found
    )


def _read_entry(spec: RunSpec, parameter: ParameterSpec, entry: Mapping[str, Any], state: OptimizerState) -> None:
    """Append what a state says of a parameter; without an entry, what a parameter has that never stepped."""
    rule = spec.groups[parameter.group].optimizer
    uncounted = type(rule).__name__ in _UNCOUNTED
    entry = {name: value for name, value in entry.items() if value is not None}
    buffers = [buffer for buffer in rule.buffers() if buffer.shape(parameter.shape) is not None]
    needed = [*(scalar.name for scalar in rule.scalars()), *(buffer.name for buffer in buffers)]
    if entry:
        _check_keys(rule, parameter, entry, needed if uncounted else ["step", *needed])
    # A count above 0: what torch has not counted is no first step.
    state.updates.append(0 if not entry else 1 if "step" not in entry else _count(parameter, entry["step"]))
    state.scalars.append(
        tuple(
            _number(parameter, scalar.name, entry[scalar.name]) if entry else scalar.initial
            for scalar in rule.scalars()
        )
    )
    arrays: list[Array | None] = []
    for buffer in rule.buffers():
        shape = buffer.shape(parameter.shape)
        if shape is None:
            arrays.append(None)
        elif entry:
            arrays.append(_buffer(parameter, buffer.name, entry[buffer.name], shape, spec.master))
        else:
            # A buffer that begins as its parameter is filled by the shard.
            initial = 0.0 if buffer.initial == "parameter" else buffer.initial
            arrays.append(np.full(shape, initial, spec.master))
    state.buffers.append(arrays)


def _check_keys(rule: Rule, parameter: ParameterSpec, entry: Mapping[str, Any], needed: Sequence[str]) -> None:
    name = type(rule).__name__
    surplus = [key for key in entry if key not in needed and key != "step"]
    missing = [key for key in needed if key not in entry]
    if missing or surplus:
        wrong = missing[0] if missing else surplus[0]
        raise InvalidArgument(
            f"state of parameter {parameter.name!r}: {'no' if missing else 'unexpected'} {wrong!r}: "
            f"{name} of this run keeps {', '.join(map(repr, needed)) or 'nothing'}, "
            f"got {', '.join(map(repr, entry))}; is it another rule's state?",
            parameter=parameter.name,
            buffer=str(wrong),
            expected=", ".join(needed),
            given=", ".join(map(str, entry)),
        )


def _buffer(parameter: ParameterSpec, name: str, value: object, shape: tuple[int, ...], master: np.dtype[Any]) -> Array:
    thing = f"state of parameter {parameter.name!r}: {name!r}"
    array = _array(thing, value)
    taken = {master.type, parameter.dtype.type}
    if parameter.dtype.type in _SIXTEEN_BITS:
        taken.add(np.float32)
    if array.dtype.type not in taken:
        expected = " or ".join(sorted(np.dtype(kind).name for kind in taken))
        raise DtypeMismatch(
            f"{thing}: dtype must be {expected}, got {array.dtype}",
            parameter=parameter.name,
            buffer=name,
            expected=expected,
            given=str(array.dtype),
        )
    if array.shape != shape:
        raise ShapeMismatch(
            f"{thing}: shape must be {shape}, got {array.shape}",
            parameter=parameter.name,
            buffer=name,
            expected=shape,
            given=array.shape,
        )
    own = array.astype(master)
    if not np.isfinite(own).all():
        refuse(thing, "values", float(own[~np.isfinite(own)][0]), "finite")
    return own


def _count(parameter: ParameterSpec, value: object) -> int:
    number = _number(parameter, "step", value)
    if number != int(number) or not 0 <= number <= UPDATES_MAX:
        refuse(f"state of parameter {parameter.name!r}", "step", number, f"an integer from 0 to {UPDATES_MAX}")
    return int(number)


def _number(parameter: ParameterSpec, name: str, value: object) -> float:
    thing = f"state of parameter {parameter.name!r}: {name!r}"
    array = _array(thing, value)
    if array.size != 1 or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        refuse(thing, "value", value, "one finite number")
    return float(array.reshape(-1)[0])


def _array(thing: str, value: Any) -> Array:
    """An array, a number, or a tensor of torch on whatever device."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if str(value.dtype) == "torch.bfloat16":
                value = value.float()  # NumPy has no bfloat16 of its own
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"{thing}: cannot be read as an array: {error}", thing=thing, given=type(value).__name__
        ) from error


def _plain(value: Any) -> Any:
    """A hyperparameter as a number or a tuple: torch may have tensors for them."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if hasattr(value, "item") else value
