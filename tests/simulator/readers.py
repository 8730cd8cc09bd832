"""Reading parameters: what workers have in common with those who only look on, and who only looks on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from stepd import specs
from stepd.errors import Aborted, StepdError
from stepd.parameters import ParameterTable
from stepd.reading import Reading
from stepd.session import Session
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2
from tests.simulator.changes import WorldSession
from tests.simulator.hosts import RUN
from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import Network

# Between two looks of a reader: at first, and in the end.
_PAUSE_S: Final = 0.003
_PAUSE_S_MAX: Final = 1.0


class Streams(RunStreams):
    """Attributes:
    step: of the parameters that were read last.
    """

    step = 0

    async def agree(self, *arguments: Any, **keywords: Any) -> Any:
        return self._took(await super().agree(*arguments, **keywords))

    async def pull_now(self, *arguments: Any, **keywords: Any) -> Any:
        return self._took(await super().pull_now(*arguments, **keywords))

    def _took(self, headers: Any) -> Any:
        self.step = next((header.step for header in headers.values()), self.step)
        return headers


@dataclass(frozen=True)
class Read:
    """Parameters that a worker has read.

    Attributes:
        who: the worker.
        step: that it was told with them.
    """

    who: str
    step: int
    params: Mapping[str, bytes]


def streams_of(session: Session, found: coordinator_pb2.GetRunResponse) -> Streams:
    table = ParameterTable(specs.run_from_proto(found.run.spec).parameters)
    return Streams(session, found.run.spec, found.layout, table)


async def read(
    who: str, streams: Streams, reads: list[Read], *, after: int | None = None, averaged: bool = False
) -> tuple[Mapping[str, bytes], int]:
    """The parameters as they are, or their averages, and their step."""
    reading = Reading(lambda: streams.known, None)
    while True:
        wanted = reading.want()
        try:
            await streams.pull_now(wanted.picture, wanted.regions, after=after, averaged=averaged)
        except Aborted as error:
            if error.reason != "LAYOUT_CHANGED":
                raise
            await streams.state()
        else:
            params = {name: array.tobytes() for name, array in wanted.arrays().items()}
            reads.append(Read(who, streams.step, params))
            return params, streams.step


class World(Protocol):
    """What readers need of the world."""

    loop: VirtualLoop
    network: Network
    over: bool
    reads: list[Read]
    averaged: list[Read]

    @property
    def averages(self) -> bool: ...
    def problem(self, text: str) -> None: ...
    def is_over(self, error: StepdError) -> bool: ...


class ReaderHost:
    """Somebody who is no worker and reads again and again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.process: Process

    def start(self) -> None:
        self.world.network.add_caller(self.process)
        self.process.start(self._live())

    async def _live(self) -> None:
        world, pause = self.world, _PAUSE_S
        session: Any = WorldSession(world.network, self.process)
        try:
            streams = streams_of(session, await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=RUN)))
            while not world.over:
                await read("reader", streams, world.reads)
                if world.averages:
                    await read("reader", streams, world.averaged, averaged=True)
                await asyncio.sleep(pause)
                pause = min(pause * 1.1, _PAUSE_S_MAX)
        except StepdError as error:
            if not world.is_over(error):
                world.problem(f"the reader got an error in the end: {error!r}")
