"""What a run is made of: parameters, groups and policies, as checked dataclasses.

A `RunSpec` that exists is a valid one, whether a user typed it or the network brought it: limits, names and ranges are
checked here and nowhere else. specs.py has its form on the wire.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, TypeAlias

import ml_dtypes
import numpy as np

from stepd import limits
from stepd.averages import Average
from stepd.errors import DtypeMismatch, OverlappingGroups, ResourceExhausted
from stepd.policies import AnySync, Clip, Missing, OnNonfinite, Sync, Wire
from stepd.rules import Rule
from stepd.schedules import Constant, Schedule
from stepd.settings import Settings, refuse, shown

DType: TypeAlias = np.dtype[Any]

# What parameters may be. In native byte order: arrays in another are converted where they come in.
DTYPES: Final[tuple[DType, ...]] = tuple(map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)))
DTYPE_NAMES: Final = ", ".join(dtype.name for dtype in DTYPES)
_RUN_NAME: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{limits.RUN_NAME_CHARS_MAX - 1}}}")


# Of runs without a schedule. Made once: making settings checks them, and every step asks.
_CONSTANT: Final = Constant()


def check_run_name(name: object) -> str:
    """The name, or InvalidArgument. It becomes part of file names and of metrics: no dots, no slashes."""
    if not isinstance(name, str) or not _RUN_NAME.fullmatch(name):
        expected = f"1 to {limits.RUN_NAME_CHARS_MAX} characters of A-Z, a-z, 0-9, _ and -, not starting with -"
        refuse("run", "name", name, expected)
    return name


def check_parameter_name(name: object) -> str:
    """The name, or InvalidArgument. It is the user's own: anything printable."""
    if not isinstance(name, str) or not 1 <= len(name) <= limits.PARAMETER_NAME_CHARS_MAX or not name.isprintable():
        refuse("parameter", "name", name, f"1 to {limits.PARAMETER_NAME_CHARS_MAX} printable characters")
    return name


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor of the model. Its id is its position in the run.

    Attributes:
        name: unique in the run.
        shape: extents in C order.
        dtype: what its owner gives and gets; one of DTYPES.
        group: index of its group.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    group: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __post_init__(self) -> None:
        check_parameter_name(self.name)
        if self.dtype not in DTYPES:
            raise DtypeMismatch(
                f"parameter {self.name!r}: dtype must be one of {DTYPE_NAMES}, got {self.dtype}",
                parameter=self.name,
                expected=DTYPE_NAMES,
                given=str(self.dtype),
            )
        thing = f"parameter {self.name!r}"
        if len(self.shape) > limits.DIMENSIONS_MAX:
            refuse(thing, "shape", self.shape, f"of at most {limits.DIMENSIONS_MAX} dimensions")
        # Extents of 0 are left out: NumPy counts the bytes of an empty array without them, too.
        if math.prod(extent for extent in self.shape if extent) > limits.ELEMENTS_MAX:
            raise ResourceExhausted(
                f"{thing}: at most {limits.ELEMENTS_MAX} elements, got the shape {shown(self.shape)}",
                parameter=self.name,
                expected=limits.ELEMENTS_MAX,
                given=shown(self.shape),
            )


@dataclass(frozen=True)
class GroupSpec(Settings):
    """Parameters that share a rule.

    Attributes:
        optimizer: with the group's own hyperparameters put in; its `lr` is the group's base rate.
        schedule: None: the run's.
        clip: a limit of the group's own, before the run's.
    """

    optimizer: Rule
    schedule: Schedule | None = None
    clip: Clip | None = None


@dataclass(frozen=True)
class RunSpec(Settings):
    """Everything that a run is created from.

    Attributes:
        name: of the run.
        parameters: by id.
        groups: at least one; may be empty of parameters.
        schedule: of groups without one of their own. None: the rate stays.
        clip: of the aggregated gradient of the whole run. None: none.
        sync: how a step gathers contributions.
        on_nonfinite: what becomes of a round with a NaN or an infinity.
        missing: what becomes of a contribution that leaves parameters out.
        average: of the parameters, kept beside them. None: none.
        optimizer: of groups that are added later without one of their own. None: that of the first group.
        wire: how gradients and parameters travel.
    """

    name: str
    parameters: tuple[ParameterSpec, ...]
    groups: tuple[GroupSpec, ...]
    schedule: Schedule | None = None
    clip: Clip | None = None
    sync: AnySync = field(default_factory=Sync)
    on_nonfinite: OnNonfinite = "skip"
    missing: Missing = "skip"
    average: Average | None = None
    optimizer: Rule | None = None
    wire: Wire = field(default_factory=Wire)

    def check(self) -> None:
        super().check()
        check_run_name(self.name)
        self._check_counts()
        if not self.wire.plain and self.master != np.float32:
            refuse(f"run {self.name!r}", "wire", self.wire, f"Wire() in a run of {self.master}, which is not encoded")
        groups: dict[str, int] = {}
        for parameter in self.parameters:
            if not 0 <= parameter.group < len(self.groups):
                thing = f"parameter {parameter.name!r}"
                refuse(thing, "group", parameter.group, f"the index of one of {len(self.groups)} groups")
            if parameter.name in groups:
                both = (groups[parameter.name], parameter.group)
                raise OverlappingGroups(
                    f"parameter {parameter.name!r} stands twice, in the groups {both[0]} and {both[1]}",
                    parameter=parameter.name,
                    groups=both,
                )
            groups[parameter.name] = parameter.group
        for before, after in pairwise(self.parameters):
            # So that a group is one stretch on every shard.
            if before.group > after.group:
                thing = f"parameter {after.name!r} (after one of group {before.group})"
                refuse(thing, "group", after.group, "in the order of groups")

    def _check_counts(self) -> None:
        if not self.parameters:
            refuse(f"run {self.name!r}", "params", {}, "at least one parameter")
        counts = (
            ("parameters", len(self.parameters), limits.PARAMETERS_MAX),
            ("groups", len(self.groups), limits.GROUPS_MAX),
            ("elements", sum(parameter.size for parameter in self.parameters), limits.ELEMENTS_MAX),
        )
        for what, count, most in counts:
            if count > most:
                raise ResourceExhausted(
                    f"run {self.name!r}: at most {most} {what}, got {count}",
                    run=self.name,
                    field=what,
                    expected=most,
                    given=count,
                )

    @cached_property
    def master(self) -> DType:
        """The dtype of parameters, gradients and buffers on the servers."""
        return master_dtype(parameter.dtype for parameter in self.parameters)

    def schedule_of(self, group: int) -> Schedule:
        """The schedule that a group follows."""
        return self.groups[group].schedule or self.schedule or _CONSTANT


def master_dtype(dtypes: Iterable[DType]) -> DType:
    """float64 if any parameter is, or else float32."""
    double = np.dtype(np.float64)
    return double if double in set(dtypes) else np.dtype(np.float32)


def check_master(run: RunSpec, added: Iterable[ParameterSpec]) -> None:
    """Raise DtypeMismatch for a parameter that cannot be added to a run: what is there keeps its dtype."""
    for parameter in added:
        if master_dtype([parameter.dtype]).itemsize > run.master.itemsize:
            raise DtypeMismatch(
                f"parameter {parameter.name!r}: run {run.name!r} computes in {run.master} since it was created; "
                f"dtype must be at most that, got {parameter.dtype}",
                parameter=parameter.name,
                expected=str(run.master),
                given=str(parameter.dtype),
            )
