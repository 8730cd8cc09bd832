"""gRPC as one writes it in a day: bench/plain.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from bench import plain
from bench.compare.system import Start
from bench.compare.workload import CLIP, DECAY, LR, Arrays, parameters


def host(start: Start) -> None:
    server, target = plain.listen(parameters(), start.workers, plain.Rule(LR, DECAY, CLIP))
    start.ready(target, [os.getpid()])
    start.wait()
    server.stop(None)


class Client:
    def __init__(self, target: str) -> None:
        self._client = plain.Client(target)
        self.parameters: Arrays = {}

    def prepare(self, gradient: Arrays) -> None:
        pass

    def step(self, gradient: Arrays) -> None:
        self.parameters = self._client.step(gradient)


@contextmanager
def join(start: Start, address: str) -> Iterator[Client]:
    yield Client(address)
