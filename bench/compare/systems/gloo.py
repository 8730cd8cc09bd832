"""No server: torch's all_reduce by gloo over TCP, and fused AdamW in every worker.

Gradients lie in one flat array, as DistributedDataParallel's buckets do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from bench.compare.network import free_port
from bench.compare.system import Start
from bench.compare.systems.torch_step import TorchStep
from bench.compare.workload import ELEMENTS, SHAPES, Arrays, cut, parameters


def host(start: Start) -> None:
    start.ready(free_port(), [])
    start.wait()


class Gloo:
    def __init__(self, workers: int) -> None:
        self.parameters = parameters()
        self._workers = workers
        self._state = TorchStep(self.parameters)
        self._flat = torch.empty(ELEMENTS)
        self._grads = cut(self._flat.numpy())
        for name, param in self._state.params.items():
            param.grad = torch.from_numpy(self._grads[name])

    def prepare(self, gradient: Arrays) -> None:
        for name in SHAPES:
            self._grads[name][...] = gradient[name]

    def step(self, gradient: Arrays) -> None:
        dist.all_reduce(self._flat)
        self._state.step(self._workers)


@contextmanager
def join(start: Start, address: int) -> Iterator[Gloo]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{address}", rank=start.rank, world_size=start.workers)
    yield Gloo(start.workers)
    dist.destroy_process_group()
