"""The optimizer's state under the names of other libraries, to and from the form of `Run.state_dict`.

All functions are pure: they make new dicts and share the arrays. Those that read (`from_*`) take `like`, a dict of the
run that is to load the result: its groups say what the parameters and hyperparameters are.

    torch_optimizer.load_state_dict(stepd.compat.to_torch(run.state_dict()))
    run.load_state_dict(stepd.compat.from_born(tensors, timestep=t, like=run.state_dict()))

The numbers need no conversion. All of these libraries keep momentum and moments as torch does: momentum without the
rate, except in LARS, where they take it in as stepd's LARS does, and moments before the correction of their bias.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

import numpy as np

from stepd.errors import InvalidArgument, ShapeMismatch
from stepd.settings import refuse
from stepd.torch_form import StateDict

__all__ = [
    "BornState",
    "from_born",
    "from_lugh",
    "from_tensorlogic",
    "to_born",
    "to_lugh",
    "to_tensorlogic",
    "to_torch",
]

# --- torch ------------------------------------------------------------------------------------------------------------


def to_torch(state_dict: StateDict) -> StateDict:
    """The same with tensors for arrays, for `load_state_dict` of an optimizer of torch. Imports torch."""
    torch = importlib.import_module("torch")
    state = {
        index: {name: torch.from_numpy(np.array(value)) for name, value in entry.items()}
        for index, entry in state_dict["state"].items()
    }
    return {"state": state, "param_groups": [dict(group) for group in state_dict["param_groups"]]}


# --- Born (Go, package optim) -----------------------------------------------------------------------------------------


class BornState(NamedTuple):
    """What Born's optimizers keep.

    Attributes:
        tensors: StateDict(): "velocity.0" of SGD, "m.0" and "v.0" of Adam, by index of the parameter.
        timestep: GetTimestep() of Adam; 0 of SGD, which has none.
    """

    tensors: dict[str, Any]
    timestep: int


_BORN: Final = {"momentum_buffer": "velocity", "exp_avg": "m", "exp_avg_sq": "v"}


def to_born(state_dict: StateDict) -> BornState:
    """State of SGD, Adam or AdamW for Born. Its one timestep is for all parameters: they must have the same count."""
    names = _renamed("Born", state_dict, _BORN)
    tensors = {
        f"{names[key]}.{place}": value
        for place, _, entry in _entries(state_dict)
        for key, value in entry.items()
        if key != "step"
    }
    return BornState(tensors, _one_count("Born", state_dict))


def from_born(tensors: Mapping[str, Any], *, like: StateDict, timestep: int | None = None) -> StateDict:
    """State of Born's SGD or Adam.

    Args:
        tensors: StateDict().
        like: of the run that is to load it.
        timestep: GetTimestep(); Adam needs it.
    """
    back = {short: key for key, short in _BORN.items()}
    state: dict[int, dict[str, Any]] = {}
    indices = [index for _, index, _ in _places(like)]
    for name, value in tensors.items():
        kind, _, place = name.partition(".")
        if kind not in back or not place.isdecimal() or int(place) >= len(indices):
            refuse("Born's state", "name", name, f"velocity.i, m.i or v.i with i from 0 to {len(indices) - 1}")
        state.setdefault(indices[int(place)], {})[back[kind]] = value
    counted = [entry for entry in state.values() if "momentum_buffer" not in entry]
    if counted and (timestep is None or timestep < 1):
        refuse("Born's state", "timestep", timestep, "at least 1 with m.i and v.i")
    for entry in counted:
        entry["step"] = np.array(timestep, np.float32)
    return _with_groups(state, like)


# --- Lugh (Perl, Lugh::Optimizer) -------------------------------------------------------------------------------------

_LUGH: Final = {"momentum_buffer": "v", "exp_avg": "m", "exp_avg_sq": "v"}
# Options of its constructors, in stepd's names.
_LUGH_SGD: Final = ("lr", "momentum", "weight_decay", "nesterov")
_LUGH_ADAMW: Final = ("lr", "eps", "weight_decay")


def to_lugh(state_dict: StateDict) -> dict[str, Any]:
    """State of SGD or AdamW in the words of Lugh's documentation: options of `new`, step_count, m and v.

    m and v are lists in the order in which parameters were added; None stands for one that never stepped. Lugh has no
    groups: neither may the state.
    """
    groups = state_dict["param_groups"]
    if len(groups) != 1:
        refuse("Lugh's state", "param_groups", len(groups), "one group")
    names, group = _renamed("Lugh", state_dict, _LUGH), groups[0]
    adam = "betas" in group
    told: dict[str, Any] = {name: group[name] for name in (_LUGH_ADAMW if adam else _LUGH_SGD)}
    if adam:
        told["beta1"], told["beta2"] = group["betas"]
        told["step_count"] = _one_count("Lugh", state_dict)
    entries = [entry for *_, entry in _places(state_dict)]
    for key in ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",):
        told[names[key]] = [entry.get(key) for entry in entries]
    return told


def from_lugh(state: Mapping[str, Any], *, like: StateDict) -> StateDict:
    """State of Lugh's SGD or AdamW, in the form of `to_lugh`; options that are not given stay as they are."""
    adam = "betas" in like["param_groups"][0]
    kinds = {"m": "exp_avg", "v": "exp_avg_sq"} if adam else {"v": "momentum_buffer"}
    options = (*_LUGH_ADAMW, "beta1", "beta2", "step_count") if adam else _LUGH_SGD
    for name in state:
        if name not in kinds and name not in options:
            refuse("Lugh's state", "name", name, ", ".join((*options, *kinds)))
    indices = [index for _, index, _ in _places(like)]
    entries: dict[int, dict[str, Any]] = {}
    for short, key in kinds.items():
        values: Sequence[Any] = state.get(short, ())
        if values and len(values) != len(indices):
            refuse("Lugh's state", short, len(values), f"{len(indices)} arrays, one for each parameter")
        for index, value in zip(indices, values, strict=False):
            if value is not None:
                entries.setdefault(index, {})[key] = value
    if adam and entries:
        if state.get("step_count", 0) < 1:
            refuse("Lugh's state", "step_count", state.get("step_count"), "at least 1 with m and v")
        for entry in entries.values():
            entry["step"] = np.array(state["step_count"], np.float32)
    result = _with_groups(entries, like)
    group = result["param_groups"][0]
    group |= {name: state[name] for name in options if name in state and name in group}
    if "nesterov" in group:
        group["nesterov"] = bool(group["nesterov"])
    if adam:
        b1, b2 = group["betas"]
        group["betas"] = (state.get("beta1", b1), state.get("beta2", b2))
    return result


# --- TensorLogic (Rust, LarsOptimizer) --------------------------------------------------------------------------------

_VELOCITY: Final = "velocity_"
_BIAS: Final = "*bias*"


def to_tensorlogic(state_dict: StateDict) -> dict[str, Any]:
    """State of LARS for TensorLogic: "velocity_NAME" flat and float64, and "trust_coef" and "exclude_bias" as lists."""
    _renamed("TensorLogic", state_dict, {"momentum_buffer": _VELOCITY})
    group = state_dict["param_groups"][0]
    if "trust_coefficient" not in group:
        refuse("TensorLogic's state", "rule", sorted(group), "LARS")
    told: dict[str, Any] = {
        "trust_coef": [group["trust_coefficient"]],
        "exclude_bias": [float(any(fnmatchcase("bias", glob) for glob in group["exclude"]))],
    }
    names = _names(state_dict)
    for _, index, entry in _entries(state_dict):
        if "momentum_buffer" in entry:
            told[_VELOCITY + names[index]] = np.asarray(entry["momentum_buffer"], np.float64).reshape(-1)
    return told


def from_tensorlogic(state: Mapping[str, Any], *, like: StateDict, params: Mapping[str, Any]) -> StateDict:
    """State of TensorLogic's LARS.

    Args:
        state: state_dict().
        like: of the run that is to load it.
        params: of that run by name (`Run.pull`): TensorLogic tells no shapes.

    Raises:
        ShapeMismatch: a velocity has not as many elements as its parameter.
    """
    index_of = {name: index for index, name in _names(like).items()}
    entries: dict[int, dict[str, Any]] = {}
    for key, values in state.items():
        if key in ("trust_coef", "exclude_bias"):
            continue
        name = key.removeprefix(_VELOCITY)
        if not key.startswith(_VELOCITY) or name not in index_of or name not in params:
            refuse("TensorLogic's state", "name", key, "trust_coef, exclude_bias or velocity_ and a parameter's name")
        param, flat = np.asarray(params[name]), np.asarray(values, np.float64).reshape(-1)
        if flat.size != param.size:
            raise ShapeMismatch(
                f"TensorLogic's state of parameter {name!r}: {key!r} must have {param.size} elements, got {flat.size}",
                parameter=name,
                expected=param.size,
                given=flat.size,
            )
        dtype = np.float64 if param.dtype == np.float64 else np.float32
        # It keeps no count, and LARS needs none: any above 0 says that the parameter has stepped.
        entries[index_of[name]] = {
            "step": np.array(1, np.float32),
            "momentum_buffer": flat.astype(dtype).reshape(param.shape),
        }
    result = _with_groups(entries, like)
    for group in result["param_groups"]:
        if "trust_coef" in state:
            group["trust_coefficient"] = float(state["trust_coef"][0])
        if "exclude_bias" in state:
            group["exclude"] = (_BIAS,) if state["exclude_bias"][0] > 0.5 else ()
    return result


# --- What they have in common -----------------------------------------------------------------------------------------


def _places(state_dict: StateDict) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Every parameter: its place over all groups, its index, and its entry, empty if it has none."""
    indices = [index for group in state_dict["param_groups"] for index in group["params"]]
    for place, index in enumerate(indices):
        yield place, index, state_dict["state"].get(index, {})


def _entries(state_dict: StateDict) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    return (each for each in _places(state_dict) if each[2])


def _names(state_dict: StateDict) -> dict[int, str]:
    """Parameters' names by index."""
    found: dict[int, str] = {}
    for group in state_dict["param_groups"]:
        names = group.get("param_names")
        if names is None or len(names) != len(group["params"]):
            refuse("state_dict", "param_names", names, "the names of the parameters, one for each")
        found |= zip(group["params"], names, strict=True)
    return found


def _renamed(library: str, state_dict: StateDict, names: Mapping[str, str]) -> Mapping[str, str]:
    """The names, if they are enough for this state."""
    for _, index, entry in _entries(state_dict):
        for key in entry:
            if key != "step" and key not in names:
                expected = ", ".join(names)
                raise InvalidArgument(
                    f"state of parameter {index}: {library} has no {key!r}, only {expected}",
                    parameter=index,
                    buffer=key,
                    expected=expected,
                    given=key,
                )
    return names


def _one_count(library: str, state_dict: StateDict) -> int:
    counts = sorted({int(entry["step"]) for *_, entry in _entries(state_dict) if "step" in entry})
    if len(counts) > 1:
        raise InvalidArgument(
            f"{library} counts steps for all parameters together; here they have {', '.join(map(str, counts))}",
            expected="one count",
            given=str(counts),
        )
    return counts[0] if counts else 0


def _with_groups(state: dict[int, dict[str, Any]], like: StateDict) -> StateDict:
    return {"state": dict(sorted(state.items())), "param_groups": [dict(group) for group in like["param_groups"]]}
