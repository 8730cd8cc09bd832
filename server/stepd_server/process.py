"""A server process's ends: when it is to stop, and what it tells whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Final

from stepd.limits import DRAIN_S

__all__ = ["announce", "stop_event"]

# After the lifeline is gone, a process that has not ended by itself within this ends without further ado.
LIFELINE_GRACE_S: Final = DRAIN_S + 5.0


def stop_event(*, lifeline: bool) -> asyncio.Event:
    """An event of the running loop that is set by SIGTERM, by SIGINT, and by the end of standard input if asked for."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if lifeline:
        threading.Thread(target=_hold_lifeline, args=(loop, stop), name="lifeline", daemon=True).start()
    return stop


def _hold_lifeline(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # In a thread, so that it works for any kind of input, and even if the loop is stuck.
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed already
        loop.call_soon_threadsafe(stop.set)
    time.sleep(LIFELINE_GRACE_S)
    os._exit(1)


def announce(text: str, *, as_json: bool, **event: object) -> None:
    """Say on standard output what has happened: `text` for people, or `event` as one line of JSON for programs."""
    try:
        print(json.dumps({"pid": os.getpid(), **event}) if as_json else text, flush=True)
    except OSError:
        # Whoever started us has stopped reading; that is no reason to stop serving.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
