"""Parts of pages that programs write: between two marks, so that the rest stays as it is."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
PAGE: Final = DOCS / "benchmarks.md"


def replaced(page: str, part: str, content: str) -> str:
    """A page with another content of a part."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no part {part!r}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def write(part: str, content: str) -> None:
    """Write a part of docs/benchmarks.md."""
    PAGE.write_text(replaced(PAGE.read_text(), part, content))


def versions(packages: Sequence[str]) -> list[str]:
    """Of the machine, Python and those packages that are installed."""
    found = [f"{len(os.sched_getaffinity(0))} cores", f"Python {platform.python_version()}"]
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
