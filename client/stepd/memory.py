"""How this process's allocator treats large buffers."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from stepd.limits import MIB

__all__ = ["tune_malloc"]

# mallopt's parameter, the environment variable that sets the same (and wins), and our value.
_SETTINGS: Final = (
    # Buffers below this come from the heap instead of a mapping of their own: 32 MiB is the most glibc takes.
    (-3, "MALLOC_MMAP_THRESHOLD_", 32 * MIB),
    # Free memory at the heap's end that is kept and not given back to the kernel, to be faulted in again.
    (-1, "MALLOC_TRIM_THRESHOLD_", 256 * MIB),
    # What the heap grows by at a time.
    (-2, "MALLOC_TOP_PAD_", 16 * MIB),
    # Heaps for threads: each trims for itself, so few are better for a process that moves large messages.
    (-8, "MALLOC_ARENA_MAX", 2),
)


def tune_malloc() -> bool:
    """Make glibc keep the memory of large messages instead of faulting it in anew for each: twice the throughput.

    For programs of one's own (servers, workers), at their start; a library must not do this to a process it is a guest
    in. Costs up to some 300 MiB that are not given back to the system.

    Returns:
        Whether it took effect; False with other C libraries than glibc.
    """
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        mallopt = ctypes.CDLL(None).mallopt
    except (ValueError, OSError, AttributeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    done = [mallopt(parameter, value) == 1 for parameter, name, value in _SETTINGS if name not in os.environ]
    return all(done)
