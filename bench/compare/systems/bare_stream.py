"""A bare gRPC stream of the same bytes there and back, 1 MiB each, without arithmetic."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from bench import bare
from bench.compare.system import Start
from bench.compare.workload import BYTES, Arrays
from bench.processes import Process
from stepd.memory import tune_malloc


def host(start: Start) -> None:
    with Process(bare.serve, BYTES) as server:
        start.ready(server.receive(), [server.pid])
        start.wait()


class Client:
    def __init__(self, target: str, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._target = target
        self._streams: bare.Streams | None = None
        self.parameters: Arrays = {}

    def prepare(self, gradient: Arrays) -> None:
        pass

    def step(self, gradient: Arrays) -> None:
        self._runner.run(self._step())

    async def _step(self) -> None:
        if self._streams is None:
            self._streams = bare.Streams([self._target], BYTES)
        await self._streams.step()


@contextmanager
def join(start: Start, address: str) -> Iterator[Client]:
    tune_malloc()
    with asyncio.Runner() as runner:
        yield Client(address, runner)
