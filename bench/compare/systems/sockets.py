"""Raw TCP sockets and fused AdamW, nothing else: no framing, no names, one thread for each worker on the server."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from bench.compare.system import Start
from bench.compare.systems.torch_step import Rounds
from bench.compare.workload import BYTES, ELEMENTS, SHAPES, Array, Arrays, cut, parameters


def receive(connection: socket.socket, into: Array) -> bool:
    """Fill an array; False if the other side has ended."""
    view = into.reshape(-1).view(np.uint8).data
    while view:
        count = connection.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


class Server:
    def __init__(self, workers: int) -> None:
        self._params = np.concatenate([param.ravel() for param in parameters().values()])
        self._rounds = Rounds(cut(self._params), workers)
        self._changed = threading.Condition()
        self._round = 0

    def serve(self, connection: socket.socket) -> None:
        own, mine = np.empty(ELEMENTS, np.float32), 0
        gradient = [torch.from_numpy(array) for array in cut(own).values()]
        while receive(connection, own):
            mine += 1
            with self._changed:
                if self._rounds.add(gradient, own=True):
                    self._round += 1
                    self._changed.notify_all()
                self._changed.wait_for(lambda mine=mine: self._round >= mine)
            connection.sendall(self._params.view(np.uint8).data)


def host(start: Start) -> None:
    server = Server(start.workers)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        start.ready(listening.getsockname()[1], [os.getpid()])
        for _ in range(start.workers):
            connection, _ = listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()
        start.wait()


class Client:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._flat = np.empty(ELEMENTS, np.float32)
        self.parameters = cut(self._flat)

    def prepare(self, gradient: Arrays) -> None:
        pass

    def step(self, gradient: Arrays) -> None:
        for name in SHAPES:
            self._connection.sendall(gradient[name].data.cast("B"))
        if not receive(self._connection, self._flat):
            raise EOFError(f"the server ended before {BYTES} bytes")


@contextmanager
def join(start: Start, address: int) -> Iterator[Client]:
    with socket.create_connection(("127.0.0.1", address)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield Client(connection)
