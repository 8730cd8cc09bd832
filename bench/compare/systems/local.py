"""No service: torch's fused AdamW and clip in the training process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.compare.system import Start
from bench.compare.systems.torch_step import TorchStep
from bench.compare.workload import Arrays, parameters


def host(start: Start) -> None:
    start.ready(None, [])
    start.wait()


class Local:
    def __init__(self) -> None:
        self.parameters = parameters()
        self._state = TorchStep(self.parameters)

    def prepare(self, gradient: Arrays) -> None:
        for name, param in self._state.params.items():
            if param.grad is None:
                param.grad = torch.empty_like(param)
            param.grad.copy_(torch.from_numpy(gradient[name]))

    def step(self, gradient: Arrays) -> None:
        self._state.step(1)


@contextmanager
def join(start: Start, address: None) -> Iterator[Local]:
    yield Local()
