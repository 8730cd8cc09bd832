"""What processes use, as /proc tells it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat after the name, beginning with the state; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def processor_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that processes have used, and their children that have ended."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _fields(pid))) / TICKS_PER_S


def with_descendants(roots: Iterable[int]) -> set[int]:
    """Processes and everything that they have started."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and (fields := _fields(int(path.name))):
            parents[int(path.name)] = int(fields[1])
    found, new = set(roots), set(roots)
    while new := {pid for pid, parent in parents.items() if parent in new} - found:
        found |= new
    return found


def peak_bytes(pids: Iterable[int]) -> int:
    """The most memory that processes have had at a time, what they share counted for each."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += 1024 * int(line.split()[1])
    return total


def available_bytes() -> int:
    """Memory that could be had now."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024
