"""One role in one process: its service on its port, from the first line it prints to the last call it answers."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import grpc.aio

from stepd.targets import Target, is_wildcard
from stepd_server.folders import LOCK_WAIT_S, lock_folder, temporary_folder
from stepd_server.metrics.catalogue import Sample
from stepd_server.metrics.endpoint import announced, serving_metrics
from stepd_server.net import Health, Listener
from stepd_server.process import announce, stop_event
from stepd_server.settings import CoordinatorSettings, ServerSettings, ShardSettings

__all__ = ["run_coordinator", "run_shard"]


class Service(Protocol):
    """What a role needs of its service."""

    def add_to(self, server: grpc.aio.Server) -> None: ...
    def samples(self) -> Iterator[Sample]: ...
    async def stop(self) -> None: ...


async def run_coordinator(settings: CoordinatorSettings) -> int:
    """Serve as the coordinator until told to stop. Returns the exit code."""
    # Roles are imported where they are run: a shard needs nothing of the coordinator's, nor a supervisor of either.
    from stepd_server.coordinator.service import CoordinatorService  # noqa: PLC0415

    stop = stop_event(lifeline=settings.lifeline)
    with _own_folder(settings, "coordinator") as folder:
        settings = dataclasses.replace(settings, data_dir=folder)
        service = CoordinatorService(settings, settings.security.dial)
        health = Health("stepd.v1.Coordinator")
        async with _serving("coordinator", settings, service, health, start=service.start):
            await health.set_ready(True)
            await stop.wait()
    return 0


async def run_shard(settings: ShardSettings) -> int:
    """Serve as a shard until told to stop. Returns the exit code."""
    from stepd_server.shard.registration import Registration  # noqa: PLC0415
    from stepd_server.shard.service import ShardService  # noqa: PLC0415
    from stepd_server.shard.threads import THREADS  # noqa: PLC0415

    THREADS.use(settings.threads)
    stop = stop_event(lifeline=settings.lifeline)
    with _own_folder(settings, f"shard-{settings.index}") as folder:
        service = ShardService(folder, settings.index)
        health = Health("stepd.v1.Shard")

        async def on_change(registered: bool) -> None:
            await health.set_ready(registered)
            if registered and settings.json:
                announce("", as_json=True, event="registered", role="shard", index=settings.index)

        async with _serving("shard", settings, service, health, index=settings.index) as bound:
            registration = Registration(
                settings.security.dial(str(settings.coordinator)),
                index=settings.index,
                target=str(_advertised(settings.advertise, bound)),
                instance=uuid.uuid4().hex,
                held_runs=service.held_runs,
                on_change=on_change,
            )
            async with registration:
                await stop.wait()
            service.let_go()
    return 0


@contextlib.asynccontextmanager
async def _serving(
    role: str,
    settings: ServerSettings,
    service: Service,
    health: Health,
    *,
    start: Callable[[], Awaitable[None]] | None = None,
    **about: object,
) -> AsyncIterator[Target]:
    """Start `service` on its port and say so; at the end take no more calls, drain, and stop it."""
    listener = Listener(settings.listen, settings.security, health, settings.health)

    async def text() -> bytes:
        from stepd_server.metrics.exposition import to_text  # noqa: PLC0415  (as above)

        return to_text(service.samples())

    async with serving_metrics(settings.metrics, text) as metrics:
        try:
            bound = listener.bind()
            service.add_to(listener.server)
            if start is not None:
                await start()
            await health.set_alive()
            await listener.start()
            said, known = announced(metrics)
            announce(
                f"stepd {role}: listening on {bound}{said}",
                as_json=settings.json,
                event="listening",
                role=role,
                target=str(bound),
                **known,
                **about,
            )
            yield bound
        finally:
            await health.set_stopping()
            await listener.stop()
            await service.stop()


@contextlib.contextmanager
def _own_folder(settings: ServerSettings, name: str) -> Iterator[Path]:
    """The data folder, a temporary one if none is given. What lies under `name` in it is this process's alone."""
    with contextlib.ExitStack() as stack:
        folder = settings.data_dir or stack.enter_context(temporary_folder(name))
        stack.enter_context(lock_folder(folder / name, wait_s=LOCK_WAIT_S))
        yield folder


def _advertised(advertise: Target | None, bound: Target) -> Target:
    """The address to tell to others. A server that listens on every address is known by its machine's name."""
    if advertise is not None:
        return advertise if advertise.port else advertise._replace(port=bound.port)
    return Target(socket.gethostname(), bound.port) if is_wildcard(bound.host) else bound
