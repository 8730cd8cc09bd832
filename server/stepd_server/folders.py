"""Folders that one process works in at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stepd.limits import DRAIN_S, MIB
from stepd_server.settings import CannotStart

__all__ = ["LOCK_WAIT_S", "held_shards", "lock_folder", "temporary_folder"]

# A process that was told to stop, or whose parent was killed, has so long to let go of its folder.
LOCK_WAIT_S: Final = DRAIN_S + 7.0

_LOCK_FILE: Final = "lock"
_PREFIX: Final = "stepd-"
# Memory, if there is some: what lies in a temporary folder need not survive the machine.
_MEMORY_FOLDER: Final = Path("/dev/shm")  # noqa: S108  (the folders in it have random names and are the user's alone)
_MEMORY_BYTES_MIN: Final = 1024 * MIB
# A folder is left alone for so long after it was made: its owner may be about to lock it.
_STALE_S: Final = 60.0


@contextlib.contextmanager
def lock_folder(path: Path, *, wait_s: float = 0.0) -> Iterator[Path]:
    """Make `path` a folder that only this process works in, until the block or the process ends, however it does.

    Raises:
        CannotStart: it cannot be made, or another process has had it for all of `wait_s`.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CannotStart(f"cannot use the folder {path}: {(error.strerror or str(error)).lower()}") from error
    try:
        deadline = time.monotonic() + wait_s
        while not _lock(descriptor):
            if time.monotonic() >= deadline:
                raise CannotStart(f"the folder {path} is in use by another process")
            time.sleep(0.05)
        yield path
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A locked folder of our own that is removed at the end; in memory if there is room.

    A process that is killed cannot remove its folder: the next one on this machine does it.
    """
    parent = _parent()
    _remove_stale(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-", dir=parent))
    try:
        with lock_folder(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def held_shards(data_dir: Path | None) -> int:
    """How many shards a fleet that worked in a folder had, for runs stay on those they were laid out over; 0: none."""
    if data_dir is None:
        return 0
    numbers = [folder.name.removeprefix("shard-") for folder in data_dir.glob("shard-*")]
    return max((int(number) + 1 for number in numbers if number.isascii() and number.isdigit()), default=0)


def _parent() -> Path:
    with contextlib.suppress(OSError):
        if os.access(_MEMORY_FOLDER, os.W_OK) and shutil.disk_usage(_MEMORY_FOLDER).free >= _MEMORY_BYTES_MIN:
            return _MEMORY_FOLDER
    return Path(tempfile.gettempdir())


def _remove_stale(parent: Path) -> None:
    """Remove the temporary folders of processes of this user that have ended without doing so."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _STALE_S or folder.is_symlink():
                continue
            # Not created here: a folder without a lock file is not one of ours.
            descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _lock(descriptor):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
