"""Arrays as users have them, and as servers take them.

An array is anything with a dtype that NumPy reads, in any memory order and byte order. A server takes it C-contiguous
and native, in the masters' dtype; it stays in the user's own memory where it is so already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from stepd.definitions import DTYPE_NAMES, DTYPES, DType
from stepd.errors import DtypeMismatch, InvalidArgument
from stepd.limits import BLOCK_ELEMENTS
from stepd.rules import Array

# The native dtype by scalar type, which is the same for both byte orders.
DTYPE_OF: Final[Mapping[type, DType]] = {dtype.type: dtype for dtype in DTYPES}
# NumPy reads an array from any of these; a list has none, and what dtype its owner meant would be a guess.
_ARRAY_PROTOCOLS: Final = ("dtype", "__array__", "__array_interface__", "__array_struct__")


def read_array(name: str, value: object, *, what: str = "") -> Array:
    """A value as an array of one of the dtypes of parameters, in whatever memory and byte order it has."""
    thing = f"{what}parameter {name!r}"
    if not any(hasattr(value, protocol) for protocol in _ARRAY_PROTOCOLS):
        kind = type(value).__name__
        raise DtypeMismatch(
            f"{thing}: must be an array with a dtype of {DTYPE_NAMES}, got {kind}",
            parameter=name,
            expected=DTYPE_NAMES,
            given=kind,
        )
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        # PyTorch's tensors that require grad, lie on a device or are of 16 bits say here what to call first.
        raise InvalidArgument(
            f"{thing}: cannot be read as an array: {error}",
            parameter=name,
            expected="an array",
            given=type(value).__name__,
        ) from error
    if array.dtype.type not in DTYPE_OF:
        raise DtypeMismatch(
            f"{thing}: dtype must be one of {DTYPE_NAMES}, got {array.dtype}",
            parameter=name,
            expected=DTYPE_NAMES,
            given=str(array.dtype),
        )
    return array


def to_master(array: Array, master: DType) -> Array:
    """The array as it lies on a server: the same memory if that is C-contiguous, aligned, native and of the dtype."""
    lying = np.asarray(array, dtype=master, order="C")
    return lying if lying.flags.aligned else lying.copy()


def check_finite(name: str, master: Array) -> None:
    flat = master.reshape(-1)
    for start in range(0, flat.size, BLOCK_ELEMENTS):  # so that a large array needs no mask as large
        finite = np.isfinite(flat[start : start + BLOCK_ELEMENTS])
        if not finite.all():
            at = start + int(finite.argmin())
            index = tuple(int(i) for i in np.unravel_index(at, master.shape))
            raise InvalidArgument(
                f"parameter {name!r}: must be finite, got {flat[at]} at index {index}",
                reason="NONFINITE_PARAMETER",
                parameter=name,
                index=index,
                expected="finite",
                given=str(flat[at]),
            )
