"""Telling of decisions to whoever watches a run."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

from stepd.errors import StepdError
from stepd.limits import WATCH_EVENTS_MAX
from stepd.v1 import coordinator_pb2

Event = coordinator_pb2.WatchRunResponse


class Watchers:
    """Those who watch one run. A reader that falls behind loses the oldest events; nobody waits for a reader."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Event]] = {}
        self._more = asyncio.Event()
        self._end: StepdError | None = None

    def publish(self, event: Event) -> None:
        for queue in self._queues.values():
            queue.append(event)
        self._wake()

    def close(self, error: StepdError) -> None:
        """End every watch with an error."""
        self._end = error
        self._wake()

    def _wake(self) -> None:
        # An event of its own for each time: whoever waits on the old one wakes up, and looks before waiting again.
        self._more.set()
        self._more = asyncio.Event()

    @contextmanager
    def watching(self) -> Iterator[AsyncIterator[Event]]:
        """Every event from the beginning of the block on."""
        queue: deque[Event] = deque(maxlen=WATCH_EVENTS_MAX)
        self._queues[id(queue)] = queue
        try:
            yield self._events(queue)
        finally:
            del self._queues[id(queue)]

    async def _events(self, queue: deque[Event]) -> AsyncIterator[Event]:
        while True:
            more = self._more
            while queue:
                yield queue.popleft()
            if self._end is not None:
                raise self._end
            if more is self._more:
                await more.wait()


class Reports:
    """What workers reported since the last event, to be told as means."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, float]] = {}

    def add(self, worker: str, metrics: Mapping[str, float]) -> None:
        """The latest value of each name counts."""
        if metrics:
            self._latest.setdefault(worker, {}).update(metrics)

    def take_means(self) -> dict[str, float]:
        """By name: the mean over the workers that reported it. Starts anew."""
        values: dict[str, list[float]] = {}
        for metrics in self._latest.values():
            for name, value in metrics.items():
                values.setdefault(name, []).append(value)
        self._latest.clear()
        return {name: _mean(given) for name, given in values.items()}


def _mean(values: list[float]) -> float:
    # fsum refuses what a worker may well report: infinities of both signs.
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else sum(values) / len(values)
