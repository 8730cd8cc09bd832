"""One process of a fleet: started, listened to, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from stepd.limits import DRAIN_S
from stepd.targets import Target, parse_target
from stepd_server.ports import HeldPort
from stepd_server.settings import CannotStart

__all__ = ["Child"]

logger = logging.getLogger(__name__)

# The first restart is at once; a process that does not live LIVED_S is waited for, twice as long each time.
BACKOFF_S_MIN: Final = 0.2
BACKOFF_S_MAX: Final = 5.0
LIVED_S: Final = 10.0
# From SIGTERM to SIGKILL: its drain time and some to put things away.
STOP_GRACE_S: Final = DRAIN_S + 5.0


class Child:
    """A server process under supervision. It keeps its address over restarts.

    Attributes:
        name: for people: "coordinator", "shard 1".
        listen: where it is told to listen; once it runs, with the port that is held for it.
        pid: of the process that runs, or ran last; None before the first.
        ready: set once it has been ready for the first time.
        metrics: where it serves its metrics, since it has last said so.
    """

    def __init__(
        self,
        name: str,
        listen: Target,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        ready_event: str,
        on_change: Callable[[], None],
    ) -> None:
        """Nothing is started yet.

        Args:
            name: see above.
            listen: port 0 lets the system choose.
            arguments: after `python -m stepd_server`, without --listen.
            environ: its environment.
            ready_event: the event that it prints when it is ready.
            on_change: called when pid or address have changed.
        """
        self.name = name
        self.listen = listen
        self.pid: int | None = None
        self.ready = asyncio.Event()
        self.metrics: Target | None = None
        self._arguments = arguments
        self._environ = environ
        self._ready_event = ready_event
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Keep it running until cancelled, which ends it.

        Raises:
            CannotStart: it ended by itself before it was ready for the first time; it has said why.
        """
        backoff_s = 0.0
        held = self._hold()
        try:
            while True:
                started = time.monotonic()
                code = await self._run_once()
                if code > 0 and not self.ready.is_set():
                    raise CannotStart("", exit_code=code)
                logger.warning("%s (pid %s) %s; starting it again", self.name, self.pid, _ending(code))
                lived_s = time.monotonic() - started
                backoff_s = 0.0 if lived_s >= LIVED_S else backoff_s
                await asyncio.sleep(backoff_s)
                backoff_s = min(max(2 * backoff_s, BACKOFF_S_MIN), BACKOFF_S_MAX)
        finally:
            await self._end()
            if held is not None:
                held.close()

    def _hold(self) -> HeldPort | None:
        """Keep its port for it, so that it can come back there."""
        try:
            held = HeldPort(self.listen)
        except (OSError, CannotStart):
            return None  # It will say itself what is wrong.
        self.listen = held.target
        return held

    async def _run_once(self) -> int:
        """Start it and take in what it says until it ends. Returns its exit code, negative for a signal."""
        self._process = process = await asyncio.create_subprocess_exec(
            # -P: a module that happens to lie in the current folder is not ours.
            *(sys.executable, "-P", "-m", "stepd_server", *self._arguments, f"--listen={self.listen}"),
            "--json",
            "--lifeline",
            env=self._environ,
            # Held open by us and nobody else: it closes with our death, however we die.
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal is for the supervisor, which ends its processes in order.
            process_group=0,
        )
        self.pid = process.pid
        if self.ready.is_set():
            self._on_change()
        assert process.stdout is not None
        async for line in process.stdout:
            self._hear(line)
        return await process.wait()

    def _hear(self, line: bytes) -> None:
        try:
            event: dict[str, Any] = json.loads(line)
            kind = event["event"]
            if kind == "listening":
                self.listen = self.listen._replace(port=parse_target(event["target"]).port)
                self.metrics = parse_target(event["metrics"]) if "metrics" in event else None
                self._on_change()
            if kind == self._ready_event:
                if self.ready.is_set():
                    logger.info("%s is back on %s (pid %s)", self.name, self.listen, self.pid)
                self.ready.set()
        except (ValueError, TypeError, KeyError):
            logger.info("%s says: %s", self.name, line.decode(errors="replace").rstrip())

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_GRACE_S)
        except (TimeoutError, asyncio.CancelledError):
            logger.warning("%s (pid %s) does not end; killing it", self.name, self.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
