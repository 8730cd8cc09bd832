"""Recording what NumPy code does to arrays, element by element. Pure.

A recording array stands for arrays of any length. It takes part in ufuncs and in-place operators as an array of NumPy
does, computes nothing, and notes what would have been computed. What does not treat every element alike (a view with
another type, a sum, a look at values) raises Untraceable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class Untraceable(Exception):
    """The code does something that a loop over elements cannot repeat."""


# A cell, by its name, or a constant, by its place in `Program.constants`.
Operand: TypeAlias = str | int

# NumPy's ufuncs that treat every element by itself and give the same bits everywhere: exact, or rounded correctly.
OPERATIONS: Final = {
    np.add: "add",
    np.subtract: "subtract",
    np.multiply: "multiply",
    np.divide: "divide",
    np.negative: "negative",
    np.abs: "abs",
    np.sqrt: "sqrt",
    np.maximum: "maximum",
    np.minimum: "minimum",
    np.sign: "sign",
}


@dataclass(frozen=True)
class Operation:
    """One step of the loop: `into = name(operands)`. "copy" has one operand."""

    name: str
    into: str
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class Program:
    """What is done to each element. Programs that only differ in their constants are equal.

    Attributes:
        cells: arrays that are read or written, by name; in the order of the kernel's arguments.
        operations: in order.
        constants: how many there are.
    """

    cells: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: int


@dataclass
class Recorder:
    """Notes operations on the arrays that it has made."""

    operations: list[Operation] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    _cells: list[str] = field(default_factory=list)

    def array(self, name: str) -> Recording:
        """A further array."""
        self._cells.append(name)
        return Recording(self, name)

    def program(self, kept: tuple[str, ...]) -> Program:
        """What has been noted.

        Args:
            kept: names of arrays that the kernel is given; what is left in the others means nothing.
        """
        return Program(kept, tuple(self.operations), len(self.constants))

    def note(self, name: str, into: object, *operands: object) -> None:
        if not isinstance(into, Recording) or into.recorder is not self:
            raise Untraceable(f"{name} into {type(into).__name__}")
        self.operations.append(Operation(name, into.name, tuple(map(self._operand, operands))))

    def _operand(self, value: object) -> Operand:
        if isinstance(value, Recording) and value.recorder is self:
            return value.name
        # NumPy's own scalars have a type that would widen the computation; Python's take the array's.
        if isinstance(value, int | float) and not isinstance(value, np.generic | bool):
            self.constants.append(float(value))
            return len(self.constants) - 1
        raise Untraceable(f"an operand of type {type(value).__name__}")


class Recording(NDArrayOperatorsMixin):
    """An array of a recorder."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder = recorder
        self.name = name

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if method != "__call__" or options or out is None or ufunc not in OPERATIONS:
            raise Untraceable(f"{ufunc.__name__}.{method} with {', '.join(options) or 'no out'}")
        self.recorder.note(OPERATIONS[ufunc], out[0], *inputs)
        return out[0]

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, options: Any) -> Any:
        if function is np.copyto and len(args) == 2 and not options:
            self.recorder.note("copy", *args)
            return None
        if function is np.clip and len(args) == 3 and set(options) == {"out"}:
            values, low, high = args
            self.recorder.note("maximum", options["out"], values, low)
            self.recorder.note("minimum", options["out"], options["out"], high)
            return options["out"]
        raise Untraceable(function.__name__)

    def __setitem__(self, key: EllipsisType, value: object) -> None:
        if key is not Ellipsis:
            raise Untraceable("a part of an array")
        self.recorder.note("copy", self, value)

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(f"the attribute {name} of an array")

    def __bool__(self) -> bool:
        raise Untraceable("a look at values")
