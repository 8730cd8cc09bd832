"""A server that may be under order to die by SIGKILL at the n-th line that it executes of certain files.

    FAULTS_ORDER=FILE python -P doomed.py shard ...

The file, if it is there when the process starts, holds a pattern of paths and a number. It is removed by whoever dies
of it, so that the next process lives. Nothing of the servers is changed for it: lines are counted by the
interpreter's own tracing.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from stepd_server.cli import main


def obey(path: Path) -> None:
    """Count lines if there is an order."""
    try:
        pattern, number = path.read_text().split()
    except FileNotFoundError:
        return
    files, left, known = re.compile(pattern), int(number), dict[str, bool]()

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left <= 0:
                path.with_suffix(".done").write_text(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                path.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        wanted = known.get(name)
        if wanted is None:
            wanted = known[name] = files.search(name) is not None
        # What runs when a file is imported is not what it does.
        return count if wanted and frame.f_code.co_name != "<module>" else None

    sys.settrace(enter)


if __name__ == "__main__":
    obey(Path(os.environ["FAULTS_ORDER"]))
    sys.exit(main())
