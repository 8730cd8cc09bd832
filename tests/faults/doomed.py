"""A server that may be under order to die by SIGKILL at the n-th line that it executes of certain functions.

    FAULTS_ORDER=FILE python -P doomed.py shard ...

The file, if it is there when the process starts or gets SIGUSR1, holds a number and a pattern, which is looked for in
`path:function`. It is removed by whoever dies of it, so that the next process lives. Whoever finds it gone when its
time has come lives on. Nothing of the servers is changed for it: lines are counted by the interpreter's own tracing.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from stepd_server.cli import main


def obey(path: Path) -> None:
    """Count lines if there is an order."""
    try:
        number, _, pattern = path.read_text().partition(" ")
    except FileNotFoundError:
        return
    wanted, left, known = re.compile(pattern), int(number), dict[CodeType, bool]()

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left == 0 and path.exists():  # or else it was pardoned
                path.with_suffix(".done").write_text(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                path.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if code not in known:
            # What runs when a file is imported is not what it does.
            named = f"{code.co_filename}:{code.co_qualname}"
            known[code] = code.co_name != "<module>" and wanted.search(named) is not None
        return count if known[code] else None

    sys.settrace(enter)


if __name__ == "__main__":
    order = Path(os.environ["FAULTS_ORDER"])
    signal.signal(signal.SIGUSR1, lambda *_: obey(order))
    obey(order)
    sys.exit(main())
