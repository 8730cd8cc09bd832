"""stepd: a fleet of processes with one shard.

Options: `transport`; `wire`: encodings of gradients and parameters; `lent`: gradients are computed into arrays of
`Worker.gradient_buffers`; `view`: parameters are views of the shard's memory; `kernels`: STEPD_KERNELS of the servers;
`shards`: another number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import stepd
from bench.compare.system import Start
from bench.compare.workload import BETAS, CLIP, DECAY, EPS, LR, Arrays, parameters
from stepd.memory import tune_malloc


def host(start: Start) -> None:
    kernels = start.options.get("kernels")
    with stepd.local(shards=start.options.get("shards", 1), env={"STEPD_KERNELS": kernels} if kernels else {}) as fleet:
        start.ready(fleet.target, [shard.pid for shard in fleet.shards])
        start.wait()


class Member:
    def __init__(self, worker: stepd.Worker, *, lent: bool, view: bool) -> None:
        self._worker = worker
        self._view = view
        self._lent = worker.gradient_buffers() if lent else None
        self.parameters: Arrays = {}

    def prepare(self, gradient: Arrays) -> None:
        for name, array in (self._lent or {}).items():
            array[...] = gradient[name]

    def step(self, gradient: Arrays) -> None:
        self.parameters = self._worker.step(self._lent or gradient, view=self._view).params


def create_run(client: stepd.Client, workers: int, wire: stepd.Wire | None = None) -> stepd.Run:
    """The run of the workload, by whoever comes first."""
    return client.create_run(
        "w",
        parameters(),
        optimizer=stepd.AdamW(lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY),
        clip=stepd.ClipNorm(CLIP),
        sync=stepd.Sync(workers=workers),
        wire=wire or stepd.Wire(),
        exist_ok=True,
    )


@contextmanager
def join(start: Start, address: str) -> Iterator[Member]:
    tune_malloc()
    with stepd.connect(address, transport=start.options["transport"]) as client:
        run = create_run(client, start.workers, stepd.Wire(*start.options.get("wire", ())))
        with run.join(rank=start.rank) as worker:
            yield Member(worker, lent=bool(start.options.get("lent")), view=bool(start.options.get("view")))
