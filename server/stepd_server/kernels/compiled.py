"""Machine code for programs, made by LLVM (the extra `stepd[fast]`) in some ten milliseconds each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from stepd.machine import available, machine_code
from stepd.rules.base import Array
from stepd_server.kernels.emit import FUNCTION, PARTED, Number, emit
from stepd_server.kernels.trace import Program

__all__ = ["NUMBERS", "Kernel", "Parts", "available", "compiled", "machine_code"]

NUMBERS: Final[dict[np.dtype[Any], Number]] = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


class Kernel:
    """A compiled loop. Calls do not hold the interpreter lock."""

    def __init__(self, engine: Any, arguments: int) -> None:
        # The code lives as long as its engine.
        self._engine = engine
        number, pointer, cells = ctypes.c_int64, ctypes.c_void_p, [ctypes.c_void_p] * arguments
        self._call = ctypes.CFUNCTYPE(None, number, pointer, *cells)(engine.get_function_address(FUNCTION))
        self._call_parted = ctypes.CFUNCTYPE(None, number, pointer, number, pointer, number, pointer, *cells)(
            engine.get_function_address(PARTED)
        )

    def __call__(self, constants: Array, arrays: Sequence[Array]) -> None:
        """Run over arrays of one length, in the order of the program's cells; the constants have their dtype."""
        self._call(arrays[0].size, constants.ctypes.data, *[array.ctypes.data for array in arrays])

    def parted(self, constants: Array, arrays: Sequence[Array], parts: Parts) -> None:
        """The same in parts that can be undone."""
        self._call_parted(
            arrays[0].size,
            constants.ctypes.data,
            parts.size,
            parts.word.ctypes.data,
            parts.first,
            parts.slot.ctypes.data,
            *[array.ctypes.data for array in arrays],
        )


class Parts(NamedTuple):
    """How a kernel that may be killed leaves what it was doing: see emit.py.

    Attributes:
        size: elements in a part.
        word: where it is noted.
        first: what is noted before anything is done.
        slot: what a part overwrites.
    """

    size: int
    word: np.ndarray[Any, np.dtype[np.int64]]
    first: int
    slot: Array


@cache
def compiled(program: Program, dtype: np.dtype[Any]) -> Kernel:
    """The kernel of a program; the same one whenever it is asked for."""
    return Kernel(machine_code(emit(program, NUMBERS[dtype])), len(program.cells))
