"""Casts between float32 and the floating types of 16 bits: to nearest even, in one pass where they are compiled.

With `stepd[fast]` rounding to bfloat16 takes less than half of the time that ml_dtypes needs, and casts of float16 a
tenth of NumPy's. The bits are theirs; of what is no number only that it is none. The loops compile beside the first
casts, which are done without them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from threading import Event, Thread
from typing import Any, Final, Literal, TypeAlias

import ml_dtypes
import numpy as np

from stepd.machine import available, has_halves, machine_code

Array = np.ndarray[Any, np.dtype[Any]]
Half: TypeAlias = Literal["bfloat16", "float16"]

DTYPES: Final[dict[Half, np.dtype[Any]]] = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype("<f2")}
_F4: Final = np.dtype("<f4")
# Below this a cast is quick enough to do without the compiler's 50 MB.
_ELEMENTS_MIN: Final = 1 << 14

_CALL: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def rounded(values: Array, kind: Half) -> Array:
    """float32 values (contiguous) in 16 bits. What is too large becomes infinite."""
    if (loop := _loop(values.size, f"round.{kind}")) is not None:
        out = np.empty(values.size, DTYPES[kind])
        loop(values.ctypes.data, out.ctypes.data, values.size)
        return out
    with np.errstate(all="ignore"):
        cast: Array = values.astype(DTYPES[kind])
    return cast


def widened(data: bytes | memoryview, kind: Half) -> Array:
    """The float32 values of bytes that hold whole numbers of 16 bits."""
    values = np.frombuffer(data, DTYPES[kind])
    out: Array = np.empty(values.size, _F4)
    widen(values, kind, out)
    return out


def widen(values: Array, kind: Half, out: Array) -> None:
    """Put values of 16 bits into contiguous memory of whatever dtype."""
    if out.dtype == _F4 and (loop := _loop(values.size, f"widen.{kind}")) is not None:
        loop(values.ctypes.data, out.ctypes.data, values.size)
        return
    with np.errstate(all="ignore"):
        out[...] = values


class Loops:
    """The compiled casts, which may be on their way."""

    def __init__(self) -> None:
        # Functions live as long as their engine.
        self._engine: Any = None
        self._functions: dict[str, Any] = {}
        self._ready = Event()
        self._preparing = Thread(target=self._prepare, name="compile")
        self._preparing.start()

    def get(self, name: str) -> Any:
        """A function, None if it is not there."""
        return self._functions.get(name) if self._ready.is_set() else None

    def wait(self) -> None:
        """Return when they are there, or cannot be had."""
        self._preparing.join()

    def _prepare(self) -> None:
        halves = has_halves()
        self._engine = machine_code("\n".join(_module(halves=halves)))
        for kind in DTYPES if halves else ("bfloat16",):
            for name in (f"round.{kind}", f"widen.{kind}"):
                self._functions[name] = _CALL(self._engine.get_function_address(name))
        self._ready.set()


@cache
def known_loops() -> Loops:
    """The compiled casts; the first who asks has them compiled."""
    return Loops()


def _loop(size: int, name: str) -> Any:
    return known_loops().get(name) if size >= _ELEMENTS_MIN and available() else None


def _module(*, halves: bool) -> Iterator[str]:
    """Of functions `void name(ptr from, ptr to, i64 count)`. Bytes may lie anywhere."""
    yield from _function(
        "round.bfloat16",
        ("i32", "i16"),
        "  %upper = lshr i32 %value, 16",
        "  %odd = and i32 %upper, 1",
        "  %half = add i32 %odd, 32767",
        "  %sum = add i32 %value, %half",
        "  %nearest = lshr i32 %sum, 16",
        "  %size = and i32 %value, 2147483647",
        "  %none = icmp ugt i32 %size, 2139095040",
        "  %quiet = or i32 %upper, 64",  # or else rounding may make an infinity of what is no number
        "  %chosen = select i1 %none, i32 %quiet, i32 %nearest",
        "  %result = trunc i32 %chosen to i16",
    )
    yield from _function(
        "widen.bfloat16", ("i16", "i32"), "  %wide = zext i16 %value to i32", "  %result = shl i32 %wide, 16"
    )
    if halves:
        yield from _function("round.float16", ("float", "half"), "  %result = fptrunc float %value to half")
        yield from _function("widen.float16", ("half", "float"), "  %result = fpext half %value to float")


def _function(name: str, types: tuple[str, str], *body: str) -> Iterator[str]:
    given, wanted = types
    yield f"define void @{name}(ptr noalias nocapture readonly %from, ptr noalias nocapture %to, i64 %count) {{"
    yield "entry:"
    yield "  %some = icmp sgt i64 %count, 0"
    yield "  br i1 %some, label %loop, label %over"
    yield "loop:"
    yield "  %i = phi i64 [ 0, %entry ], [ %next, %loop ]"
    yield f"  %from.at = getelementptr inbounds {given}, ptr %from, i64 %i"
    yield f"  %value = load {given}, ptr %from.at, align 1"
    yield from body
    yield f"  %to.at = getelementptr inbounds {wanted}, ptr %to, i64 %i"
    yield f"  store {wanted} %result, ptr %to.at, align 1"
    yield "  %next = add nuw nsw i64 %i, 1"
    yield "  %more = icmp slt i64 %next, %count"
    yield "  br i1 %more, label %loop, label %over"
    yield "over:"
    yield "  ret void"
    yield "}"
