"""What a run takes of the compiler, had before the run takes its memory, so that a server's peak has one of the two.

The compiler is a library of 150 MB, of which compiling maps some 75. They are a file's, and the system could take them
back; but whoever looks at how much memory a server takes would count them for as long as it runs.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from stepd import casts
from stepd.rules import Rule
from stepd_server.kernels.arriving import known_loops
from stepd_server.kernels.compiled import compiled
from stepd_server.kernels.updates import prepare, wanted

log = logging.getLogger(__name__)

_LIBRARY: Final = "llvmlite"
_MADV_DONTNEED: Final = 4


def compile_for(
    groups: Sequence[tuple[Rule, float]], dtype: np.dtype[Any], elements: int, *, halves: bool = False
) -> None:
    """Compile what the first steps of a run take, and give back what that took.

    Args:
        groups: see `prepare`.
        dtype: of the run.
        elements: that the run has here.
        halves: what travels may have 16 bits.
    """
    if not wanted(elements):
        return
    before = _compiled()
    preparing = prepare(groups, dtype, elements)
    known_loops(dtype).wait()
    if halves:
        casts.known_loops().wait()
    if preparing is not None:
        preparing.join()
    if _compiled() != before:
        give_back_pages()


def give_back_pages(library: str = _LIBRARY) -> int:
    """Unmap what is mapped of a library's file, and as it is there: it is mapped again when it is used. Give bytes."""
    given = 0
    try:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end, resident in _unchanged(Path("/proc/self/smaps").read_text(), library):
            given += resident if madvise(begin, end - begin, _MADV_DONTNEED) == 0 else 0
    except (OSError, AttributeError) as error:
        log.debug("pages of %s are kept: %s", library, error)
    return given


def _unchanged(smaps: str, library: str) -> Iterator[tuple[int, int, int]]:
    """Stretches [begin, end) of memory that hold but the library's file, each with the bytes that are there."""
    for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps):
        head, *lines = part.splitlines()
        if library not in head or head.split()[1] not in ("r-xp", "r--p"):
            continue
        sizes = {name: int(size[:-3]) * 1024 for name, _, size in map(_parted, lines) if size.endswith(" kB")}
        # Private pages that were written to are nowhere else.
        if sizes["Anonymous"] == 0:
            begin, _, end = head.split()[0].partition("-")
            yield int(begin, 16), int(end, 16), sizes["Rss"]


def _parted(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _compiled() -> int:
    return sum(each.cache_info().misses for each in (known_loops, casts.known_loops, compiled))
