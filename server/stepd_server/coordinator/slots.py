"""Files that a kill at any moment leaves whole: framed with a length and a checksum, written in turn or replaced.

Nothing here is synced but by `write_whole`: what is written survives the death of the process, not that of the machine
(durability level "process").
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final

# Magic, sequence number, bytes of payload; then the payload and the checksum of all before.
_HEADER: Final = struct.Struct("<8sQQ")
_CHECKSUM: Final = struct.Struct("<I")
_MAGIC: Final = b"stepd-1\n"
# Of a file that is being written, behind its name.
NEW: Final = ".new"
# Taken for each file of a value that is written often, so that a disk that fills up does not stop a run: a decision of
# a hundred members with the longest names. More is taken when it is needed.
_ROOM: Final = 16 << 10


def frame(payload: bytes, sequence: int = 0) -> bytes:
    body = _HEADER.pack(_MAGIC, sequence, len(payload)) + payload
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unframe(data: bytes) -> tuple[int, bytes] | None:
    """The sequence number and the payload; None if they are not whole. What lies behind them is passed over."""
    if len(data) < _HEADER.size:
        return None
    magic, sequence, length = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    if magic != _MAGIC or len(data) < end + _CHECKSUM.size:
        return None
    (checksum,) = _CHECKSUM.unpack_from(data, end)
    if checksum != zlib.crc32(memoryview(data)[:end]):
        return None
    return sequence, data[_HEADER.size : end]


class Slots:
    """A value that is written often: two files in turn, so that a torn write costs nothing but itself."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = (folder / f"{name}.0", folder / f"{name}.1")
        found = [whole for path in self._paths if (whole := unframe(read(path)))]
        self._sequence: int
        self.value: bytes | None
        self._sequence, self.value = max(found) if found else (0, None)

    def reserve(self) -> None:
        """Take room for both files, as far as they are not there. OSError if there is none."""
        for path in self._paths:
            if not path.exists():
                descriptor = _open(path)
                try:
                    os.posix_fallocate(descriptor, 0, _ROOM)
                finally:
                    os.close(descriptor)

    def write(self, payload: bytes) -> None:
        sequence = self._sequence + 1
        descriptor = _open(self._paths[sequence % 2])
        try:
            data = frame(payload, sequence)
            written = os.pwrite(descriptor, data, 0)
            if written != len(data):
                raise OSError(f"{self._paths[sequence % 2]}: {written} of {len(data)} bytes written")
        finally:
            os.close(descriptor)
        self._sequence, self.value = sequence, payload


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def write_whole(path: Path, payload: bytes, *, synced: bool = True) -> None:
    """Write a file that is either the old or the new one; if it is synced, also after the loss of the machine."""
    temporary = path.with_name(path.name + NEW)
    with temporary.open("wb") as file:
        file.write(frame(payload))
        file.flush()
        if synced:
            os.fsync(file.fileno())
    temporary.replace(path)
    if synced:
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
