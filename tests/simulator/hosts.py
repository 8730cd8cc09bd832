"""The servers of a world: processes that run what ships, and start again with what they find in their folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from stepd_server.coordinator.service import CoordinatorService
from stepd_server.shard.registration import Registration
from stepd_server.shard.service import ShardService
from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import Channel, Network, Server

RUN = "run"


class World(Protocol):
    """What servers need of the world."""

    loop: VirtualLoop
    network: Network
    folder: Path
    wall_offset: float

    def note(self, kind: str, *about: object) -> None: ...
    def problem(self, text: str) -> None: ...
    def coordinator_reads(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What the coordinator's service reads of its settings."""

    shards: int
    data_dir: Path


class Host:
    """Where a server runs, time after time.

    Attributes:
        folder: what it finds when it starts.
        lives: how often it has been started.
        returns_in: seconds after which it is started again if it dies at a store.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.target = f"{name}:7000"
        self.folder = world.folder / name
        self.folder.mkdir()
        self.lives = 0
        self.returns_in = 0.0
        self.process: Process

    @property
    def here(self) -> bool:
        return not self.process.dead

    def start(self) -> None:
        self.lives += 1
        self.world.note("start", self.name, self.lives)
        self.process = Process(self.world.loop, self.name)
        self.world.network.add_caller(self.process)
        self.process.start(self._guarded())

    async def _guarded(self) -> None:
        try:
            await self.serve(self.process)
        except Exception as error:  # noqa: BLE001 (told)
            self.world.problem(f"{self.name} cannot start: {error!r}")

    async def serve(self, process: Process) -> None:
        raise NotImplementedError

    def leave_memory(self) -> None:
        """What it has written until now is what the next one finds, whatever the rest of a function still does."""
        after = self.world.folder / f"{self.name}.{self.lives}"
        shutil.copytree(self.folder, after)
        self.folder = after


class CoordinatorHost(Host):
    """The coordinator's."""

    def __init__(self, world: World, shards: int) -> None:
        super().__init__(world, "coordinator")
        self._shards = shards
        self.service: CoordinatorService

    async def serve(self, process: Process) -> None:
        world, loop = self.world, self.world.loop
        world.coordinator_reads(self.folder)
        self.service = CoordinatorService(
            Settings(self._shards, self.folder),
            partial(Channel, world.network, process),
            steady=loop.time,
            wall=lambda: 1e9 + loop.time() + world.wall_offset,
        )
        await self.service.start()
        server: Any = Server(world.network, process, self.target)
        self.service.add_to(server)

    @property
    def run(self) -> Any:
        """The run, if there is one."""
        running = self.service._running
        return running._runs.get(RUN) if running else None


class ShardHost(Host):
    """One shard's."""

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, f"shard-{index}")
        self.index = index
        self.service: ShardService | None = None

    async def serve(self, process: Process) -> None:
        world = self.world
        self.service = ShardService(self.folder, self.index)
        server: Any = Server(world.network, process, self.target)
        self.service.add_to(server)
        channel: Any = Channel(world.network, process, "coordinator:7000")

        async def on_change(_: bool) -> None: ...

        await Registration(
            channel,
            index=self.index,
            target=self.target,
            instance=f"{self.name}.{self.lives}",
            held_runs=self.service.held_runs,
            on_change=on_change,
        ).__aenter__()

    @property
    def arena(self) -> Any:
        """Of the run, if it holds it."""
        run = self.service._runs.get(RUN) if self.service else None
        return run.arena if run else None

    @property
    def runs(self) -> list[Path]:
        """Folders of runs."""
        return list((self.folder / self.name / "runs").iterdir())
