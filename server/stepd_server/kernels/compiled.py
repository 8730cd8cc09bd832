"""Machine code for programs, made by LLVM (the extra `stepd[fast]`) in some ten milliseconds each."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np

from stepd.machine import available, machine_code
from stepd.rules.base import Array
from stepd_server.kernels.emit import FUNCTION, SWEEP, Number, emit
from stepd_server.kernels.trace import Program

__all__ = ["NUMBERS", "Kernel", "available", "compiled", "machine_code"]

Words: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

NUMBERS: Final[dict[np.dtype[Any], Number]] = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


class Kernel:
    """A compiled loop. Calls do not hold the interpreter lock."""

    def __init__(self, engine: Any, arguments: int) -> None:
        # The code lives as long as its engine.
        self._engine = engine
        number, pointer, cells = ctypes.c_int64, ctypes.c_void_p, [ctypes.c_void_p] * arguments
        self._call = ctypes.CFUNCTYPE(None, number, pointer, *cells)(engine.get_function_address(FUNCTION))
        self._call_sweep = ctypes.CFUNCTYPE(None, pointer, pointer, number, pointer, pointer)(
            engine.get_function_address(SWEEP)
        )

    def __call__(self, constants: Array, arrays: Sequence[Array]) -> None:
        """Run over arrays of one length, in the order of the program's cells; the constants have their dtype."""
        self._call(arrays[0].size, constants.ctypes.data, *[array.ctypes.data for array in arrays])

    def sweep(self, rows: Words, part: int, word: Words, slot: Array) -> None:
        """Run over one row after the other, in parts that can be undone.

        Args:
            rows: as emit.py has them, C-contiguous.
            part: elements in a part.
            word: where it is noted which part is under way.
            slot: what a part overwrites.
        """
        begin = rows.ctypes.data
        self._call_sweep(begin, begin + rows.nbytes, part, word.ctypes.data, slot.ctypes.data)


@cache
def compiled(program: Program, dtype: np.dtype[Any]) -> Kernel:
    """The kernel of a program; the same one whenever it is asked for."""
    return Kernel(machine_code(emit(program, NUMBERS[dtype])), len(program.cells))
