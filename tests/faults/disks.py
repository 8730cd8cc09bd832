"""A disk that is as small as a test wants it, and can be filled up."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class SmallDisk:
    """A file system of its own in memory, mounted on a folder; a context manager. Only root can have one."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._ballast = path / "ballast"
        path.mkdir()
        if os.geteuid():
            pytest.skip("only root can mount a small disk")
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)],
            check=False,
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")

    @property
    def files(self) -> set[str]:
        """What lies on it, but for what fills it up."""
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*")} - {self._ballast.name}

    def fill(self) -> None:
        """Leave no room at all."""
        with self._ballast.open("ab", buffering=0) as file:
            free = os.fstatvfs(file.fileno())
            while free.f_bfree:
                # Whoever else writes may have taken the rest meanwhile.
                with contextlib.suppress(OSError):
                    file.write(bytes(free.f_bfree * free.f_bsize))
                free = os.fstatvfs(file.fileno())

    def leave(self, size: int) -> None:
        """Fill it up but for so many bytes (of whole pages)."""
        self.fill()
        os.truncate(self._ballast, self._ballast.stat().st_size - size)

    def empty(self) -> None:
        """Take away what fills it up."""
        self._ballast.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)
