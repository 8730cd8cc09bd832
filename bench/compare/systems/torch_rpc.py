"""torch.distributed.rpc: a server with parameters and fused AdamW, workers that call it with their gradient.

Options: `transports` and `channels` of TensorPipe, `malloc`: glibc's allocator tuned in all processes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import rpc

from bench.compare.network import free_port
from bench.compare.system import Start
from bench.compare.systems.torch_step import Rounds
from bench.compare.workload import SHAPES, Arrays, parameters
from stepd.memory import tune_malloc

SERVER = "server"

_rounds: Rounds
_lock = threading.Lock()
_waiting: list[torch.futures.Future[list[torch.Tensor]]] = []


@rpc.functions.async_execution
def _exchange(gradient: list[torch.Tensor]) -> torch.futures.Future[list[torch.Tensor]]:
    future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
    with _lock:
        _waiting.append(future)
        whole = _rounds.add(gradient, own=True)
        waiting = _waiting.copy() if whole else []
    if whole:
        _waiting.clear()
        answer = [param.detach() for param in _rounds.state.params.values()]
        for one in waiting:
            one.set_result(answer)
    return future


def _init(start: Start, port: int) -> None:
    if start.options.get("malloc"):
        tune_malloc()
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://127.0.0.1:{port}",
        rpc_timeout=600,
        _transports=start.options.get("transports"),
        _channels=start.options.get("channels"),
    )
    name = SERVER if start.rank < 0 else f"worker-{start.rank}"
    rpc.init_rpc(name, rank=start.rank + 1, world_size=start.workers + 1, rpc_backend_options=options)


def host(start: Start) -> None:
    global _rounds  # noqa: PLW0603 (functions that are called by others find it by name)
    _rounds = Rounds(parameters(), start.workers)
    port = free_port()
    start.ready(port, [os.getpid()])
    _init(start, port)
    start.wait()
    rpc.shutdown(graceful=False)


class Caller:
    def __init__(self) -> None:
        self.parameters: Arrays = {}

    def prepare(self, gradient: Arrays) -> None:
        pass

    def step(self, gradient: Arrays) -> None:
        answer = rpc.rpc_sync(SERVER, _exchange, ([torch.from_numpy(gradient[name]) for name in SHAPES],))
        self.parameters = {name: tensor.numpy() for name, tensor in zip(SHAPES, answer, strict=True)}


@contextmanager
def join(start: Start, address: int) -> Iterator[Caller]:
    _init(start, address)
    yield Caller()
    rpc.shutdown(graceful=False)
