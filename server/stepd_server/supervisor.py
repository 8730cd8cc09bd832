"""`stepd serve`: a whole fleet on one machine.

The supervisor starts a coordinator and its shards as processes of their own and starts again what dies. It serves
nothing itself: it can be killed without losing a bit of a run, and then its processes end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from stepd.limits import COMPUTE_THREADS_MAX
from stepd.targets import Target, is_wildcard
from stepd_server.child import Child
from stepd_server.folders import lock_folder, temporary_folder
from stepd_server.metrics.endpoint import announced, serving_metrics
from stepd_server.process import announce, stop_event
from stepd_server.settings import CannotStart, FleetSettings, cores
from stepd_server.tokens import FLEET_TOKEN_VARIABLE

__all__ = ["FLEET_FILE", "run_fleet"]

logger = logging.getLogger(__name__)

# Who is who in the fleet, for whoever looks into the data folder. Always whole: written anew and renamed.
FLEET_FILE: Final = "fleet.json"
# Opening what a restarted fleet finds in its folder is a matter of seconds; imports on a busy machine too.
START_TIMEOUT_S: Final = 120.0


async def run_fleet(settings: FleetSettings) -> int:
    """Supervise a fleet until told to stop; nothing of it is left then. Returns the exit code."""
    stop = stop_event(lifeline=settings.lifeline)
    with contextlib.ExitStack() as stack:
        if settings.data_dir is None:
            folder = stack.enter_context(temporary_folder("fleet"))
        else:
            folder = stack.enter_context(lock_folder(settings.data_dir.absolute()))
        fleet = _Fleet(settings, folder)
        async with serving_metrics(settings.metrics, fleet.text) as fleet.metrics:
            try:
                await _unless(stop, fleet.start())
                await _unless(stop, fleet.watch())
            finally:
                await fleet.end()
    return 0


class _Fleet:
    """The processes of one fleet.

    Attributes:
        metrics: where the metrics of all are served.
    """

    def __init__(self, settings: FleetSettings, folder: Path) -> None:
        self.metrics: Target | None = None
        self._settings = settings
        self._folder = folder
        self._environ = _environ(with_token=settings.security.tokens is not None)
        host = settings.listen.host
        # How its own servers and everybody else reach it.
        self._host = settings.advertise or (socket.gethostname() if is_wildcard(host) else host)
        health = [] if settings.health is None else [f"--health={settings.health}"]
        self._coordinator = self._child(
            "coordinator",
            settings.listen,
            ["coordinator", f"--shards={settings.shards}", *health],
            ready_event="listening",
        )
        self._shards: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def _target(self) -> Target:
        return Target(self._host, self._coordinator.listen.port)

    async def start(self) -> None:
        """Start everything and wait until it is ready.

        Raises:
            CannotStart: a process ended by itself, or took too long.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._start([self._coordinator])
                self._shards = [self._shard(index) for index in range(self._settings.shards)]
                await self._start(self._shards)
        except TimeoutError:
            late = [child.name for child in (self._coordinator, *self._shards) if not child.ready.is_set()]
            raise CannotStart(f"not ready after {START_TIMEOUT_S:.0f} s: {', '.join(late)}") from None
        self._write()
        noun = "shard" if len(self._shards) == 1 else "shards"
        announce(
            f"stepd: fleet of {len(self._shards)} {noun} listening on {self._target}{announced(self.metrics)[0]}",
            as_json=self._settings.json,
            event="listening",
            role="fleet",
            data_dir=str(self._folder),
            **self._state(),
        )

    async def watch(self) -> None:
        """Wait for ever; restarts happen meanwhile."""
        await _first(*self._tasks)

    async def text(self) -> bytes:
        """The metrics of all processes, for one scrape."""
        # Imported where it is needed: it takes a while, and most fleets are not asked.
        from stepd_server.metrics.fleet import scrape_all  # noqa: PLC0415

        return await scrape_all({child.name: child.metrics for child in (self._coordinator, *self._shards)})

    async def end(self) -> None:
        """End all processes, and wait until they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(OSError):
            (self._folder / FLEET_FILE).unlink(missing_ok=True)

    async def _start(self, children: list[Child]) -> None:
        tasks = [asyncio.create_task(child.run(), name=child.name) for child in children]
        self._tasks += tasks
        for child in children:
            # Any of them may fail while another is waited for.
            await _first(child.ready.wait(), *self._tasks)
            announce(
                f"stepd serve: {child.name} is ready on {child.listen} (pid {child.pid})",
                as_json=self._settings.json,
                event="listening",
                role=child.name.split()[0],
                target=str(Target(self._host, child.listen.port)),
                pid=child.pid,
            )

    def _shard(self, index: int) -> Child:
        threads = self._settings.threads or min(max(1, cores() // self._settings.shards), COMPUTE_THREADS_MAX)
        flags = {
            "index": index,
            "coordinator": self._target,
            "advertise": Target(self._host, 0),
            "threads": threads,
        }
        return self._child(
            f"shard {index}",
            Target(self._settings.listen.host, 0),
            ["shard", *(f"--{flag}={value}" for flag, value in flags.items())],
            ready_event="registered",
        )

    def _child(self, name: str, listen: Target, arguments: list[str], *, ready_event: str) -> Child:
        tls = self._settings.security.tls
        flags: dict[str, str | os.PathLike[str] | None] = {
            "--data-dir": self._folder,
            "--tokens": self._settings.tokens_file,
        }
        if tls is not None:
            flags |= {"--tls-cert": tls.cert, "--tls-key": tls.key, "--tls-ca": tls.ca}
        arguments += [f"{flag}={os.fspath(path)}" for flag, path in flags.items() if path is not None]
        if self._settings.insecure:
            arguments.append("--insecure")
        if self._settings.metrics is not None:
            # For the supervisor alone to ask, which tells all of them in one text.
            arguments.append("--metrics=127.0.0.1:0")
        return Child(name, listen, arguments, self._environ, ready_event=ready_event, on_change=self._write)

    def _state(self) -> dict[str, Any]:
        def process(child: Child) -> dict[str, Any]:
            return {"pid": child.pid, "target": str(Target(self._host, child.listen.port))}

        return {
            "target": str(self._target),
            "pid": os.getpid(),
            **announced(self.metrics)[1],
            "coordinator": process(self._coordinator),
            "shards": [{"index": index, **process(child)} for index, child in enumerate(self._shards)],
        }

    def _write(self) -> None:
        fresh = self._folder / f"{FLEET_FILE}.new"
        try:
            fresh.write_text(json.dumps(self._state(), indent=1) + "\n")
            fresh.replace(self._folder / FLEET_FILE)
        except OSError as error:
            # The fleet runs without it.
            logger.error("cannot write %s: %s", self._folder / FLEET_FILE, error.strerror)  # noqa: TRY400


def _environ(*, with_token: bool) -> dict[str, str]:
    """The environment of the fleet's processes: their settings are on their command lines, but for the token."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STEPD_SERVER_")}
    if with_token:
        environ[FLEET_TOKEN_VARIABLE] = secrets.token_urlsafe(32)
    return environ


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, unless or until `stop` is set."""
    if stop.is_set():
        work.close()
        return
    await _first(stop.wait(), work)


async def _first(*work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    """Wait until one has ended, pass on what it raises, and cancel those that were not tasks before."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        own = [task for task, given in zip(tasks, work, strict=True) if task is not given]
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
