"""Files that outlive the process: mapped arrays, and small ones that are there whole or not at all."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from stepd.errors import ResourceExhausted

# Memory that is there when it is taken saves a page fault for each 4 KiB in the first step.
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)

# What the system says when there is no memory, or no room on a disk.
NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)


def map_array(path: Path, size: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The array in a file of at least this size, which is made with zeros if it is not there."""
    if size == 0:
        return np.empty(0, dtype)
    length = size * dtype.itemsize
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Without this a full disk shows as SIGBUS in the middle of a step.
        os.posix_fallocate(descriptor, 0, length)
        mapping = mmap.mmap(descriptor, length, flags=mmap.MAP_SHARED | _POPULATE)
    finally:
        os.close(descriptor)
    return np.frombuffer(mapping, dtype)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all. ResourceExhausted if there is no room: the old one stays."""
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in NO_ROOM:
            raise
        raise ResourceExhausted(
            f"no room for {len(content)} bytes in {path.parent}: {error.strerror}", needed=len(content)
        ) from error
