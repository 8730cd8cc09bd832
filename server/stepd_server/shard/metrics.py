"""What a shard has to tell to whoever scrapes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from stepd_server.metrics import catalogue
from stepd_server.metrics.catalogue import Sample
from stepd_server.shard.arena import Arena
from stepd_server.shard.run import ShardRun


@dataclass(slots=True)
class Traffic:
    """Bytes of bulk messages: gradients, parameters, states. One addition for each message.

    Attributes:
        received: in messages.
        sent: in messages.
        read: of gradients where they lie in shared memory.
        shown: of parameters that workers were told to read in shared memory.
    """

    received: int = 0
    sent: int = 0
    read: int = 0
    shown: int = 0


def samples(index: int, runs: Iterable[ShardRun], traffic: Traffic) -> Iterator[Sample]:
    """Of the shard of this index. Runs that were deleted are not among them, and so their series end."""
    shard = str(index)
    yield Sample(catalogue.BYTES, ("in", "grpc", shard), traffic.received)
    yield Sample(catalogue.BYTES, ("out", "grpc", shard), traffic.sent)
    yield Sample(catalogue.BYTES, ("in", "shm", shard), traffic.read)
    yield Sample(catalogue.BYTES, ("out", "shm", shard), traffic.shown)
    for run in runs:
        for phase, taken in run.phases.taken.items():
            yield Sample(catalogue.STEP_SECONDS, (run.name, phase, shard), taken)
        for kind, size in _bytes_by_kind(run.arena).items():
            yield Sample(catalogue.STATE_BYTES, (run.name, kind, shard), size)


def _bytes_by_kind(arena: Arena) -> dict[str, int]:
    sizes = {
        "parameters": arena.parameters.nbytes,
        "buffers": sum(buffer.nbytes for group in arena.buffers for buffer in group),
        "accumulator": arena.accumulator.nbytes,
    }
    return sizes if arena.averaged is None else {**sizes, "average": arena.averaged.nbytes}
