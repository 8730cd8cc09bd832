"""The loops over arriving elements, compiled."""

from __future__ import annotations

import ctypes
from functools import cache
from threading import Event, Thread
from typing import Any, Final

import numpy as np

from stepd_server.kernels.compiled import NUMBERS, machine_code
from stepd_server.kernels.emit import FUNCTION
from stepd_server.kernels.gather import Form, emit_gather
from stepd_server.kernels.updates import wanted

_CALL: Final = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
)


class Loops:
    """The loops of one dtype.

    They take some tenths of a second to compile, which nobody should wait for: until they are there, NumPy does the
    same, to the bit.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._number = NUMBERS[dtype]
        # Functions live as long as their engines.
        self._made: dict[Form, tuple[Any, Any]] = {}
        self._ready = Event()
        self._preparing = Thread(target=self._prepare, name="compile")
        self._preparing.start()

    @property
    def ready(self) -> bool:
        """Whether what every run needs is there."""
        return self._ready.is_set()

    def wait(self) -> None:
        """Return when it is, or when it cannot be had."""
        self._preparing.join()

    def __getitem__(self, form: tuple[bool, bool, bool, bool, bool]) -> Any:
        """The function for what arrives, weighted, reached, complete, limited: see `Form`."""
        arrives, weighted, reached, complete, limited = form
        return self._function(Form(self._number, arrives, weighted, reached, complete, limited))

    def _prepare(self) -> None:
        for complete, reached in ((True, False), (False, False), (True, True), (False, True)):
            self._function(Form(self._number, reached=reached, complete=complete))
        self._ready.set()

    def _function(self, form: Form) -> Any:
        made = self._made.get(form)
        if made is None:
            engine = machine_code(emit_gather(form))
            made = self._made[form] = (engine, _CALL(engine.get_function_address(FUNCTION)))
        return made[1]


def loops(dtype: np.dtype[Any], elements: int) -> Loops | None:
    """The loops, if they are worth it for so many elements and are there; the first who asks has them compiled."""
    if not wanted(elements):
        return None
    known = known_loops(dtype)
    return known if known.ready else None


@cache
def known_loops(dtype: np.dtype[Any]) -> Loops:
    """The loops, which may be on their way."""
    return Loops(dtype)
