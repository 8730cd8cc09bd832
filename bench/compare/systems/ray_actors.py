"""Ray: an actor with parameters and fused AdamW. Gradients and parameters go through Ray's shared memory.

What a worker gets are arrays that lie there and can only be read.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from bench.compare.system import Start
from bench.compare.systems.torch_step import Rounds
from bench.compare.workload import SHAPES, Array, Arrays, parameters

NAME, NAMESPACE = "server", "bench"
STORE_BYTES = 1 << 30


class Server:
    """An actor with a thread for each worker."""

    def __init__(self, workers: int) -> None:
        self._rounds = Rounds(parameters(), workers)
        self._changed = threading.Condition()
        self._round = 0

    def pid(self) -> int:
        return os.getpid()

    def exchange(self, mine: int, gradient: list[Array]) -> list[Array]:
        with self._changed:
            # They lie in memory that cannot be written to.
            if self._rounds.add([_tensor(array) for array in gradient], own=False):
                self._round += 1
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._round >= mine)
        return [param.detach().numpy() for param in self._rounds.state.params.values()]


def _tensor(array: Array) -> torch.Tensor:
    """A tensor over memory that can only be read, and is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def host(start: Start) -> None:
    token = secrets.token_hex(32)
    ray = _ray(token)
    context = ray.init(
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        namespace=NAMESPACE,
    )
    actor = ray.remote(Server).options(name=NAME, max_concurrency=start.workers + 1, num_cpus=0).remote(start.workers)
    pid = ray.get(actor.pid.remote())
    start.ready((context.address_info["address"], token), [pid])
    start.wait()
    ray.shutdown()


def _ray(token: str) -> Any:
    """Ray, which asks for a token and shows it, as it listens beyond loopback. It reads these when it is imported."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return importlib.import_module("ray")


class Caller:
    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._server = ray.get_actor(NAME)
        self._round = 0
        self.parameters: Arrays = {}

    def prepare(self, gradient: Arrays) -> None:
        pass

    def step(self, gradient: Arrays) -> None:
        self._round += 1
        arrays = [np.asarray(gradient[name]) for name in SHAPES]
        answer = self._ray.get(self._server.exchange.remote(self._round, self._ray.put(arrays)))
        self.parameters = dict(zip(SHAPES, answer, strict=True))


@contextmanager
def join(start: Start, address: tuple[str, str]) -> Iterator[Caller]:
    place, token = address
    ray = _ray(token)
    ray.init(address=place, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    yield Caller(ray)
    ray.shutdown()
