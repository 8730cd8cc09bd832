"""gRPC as one writes it in a day: unary calls with a message for each tensor, NumPy expressions over whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Condition
from typing import Any

import grpc
import numpy as np
from google.protobuf.any_pb2 import Any as Tensor  # type_url: the tensor's name; value: its bytes

Array = np.ndarray[Any, np.dtype[Any]]

NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True)
class Rule:
    """AdamW as in torch, and the limit of the norm of everything."""

    lr: float
    decay: float
    clip: float


class Server:
    """AdamW on whole tensors. Holds every worker's gradient until all are in."""

    def __init__(self, params: Mapping[str, Array], workers: int, rule: Rule) -> None:
        self.params = dict(params)
        self.m = {name: np.zeros_like(param) for name, param in params.items()}
        self.v = {name: np.zeros_like(param) for name, param in params.items()}
        self.received: dict[str, list[Array]] = {}
        self.workers, self.rule, self.t, self.done = workers, rule, 0, Condition()

    def push(self, tensor: Tensor, _: Any) -> Tensor:
        gradient = np.frombuffer(tensor.value, np.float32).reshape(self.params[tensor.type_url].shape)
        with self.done:
            self.received.setdefault(tensor.type_url, []).append(gradient)
            if all(len(self.received.get(name, ())) == self.workers for name in self.params):
                self.update({name: sum(g) / self.workers for name, g in self.received.items()})
                self.received, self.t = {}, self.t + 1
                self.done.notify_all()
        return Tensor()

    def update(self, grads: Mapping[str, Any]) -> None:
        lr, decay = self.rule.lr, self.rule.decay
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
        t, scale = self.t + 1, np.float32(min(1.0, self.rule.clip / (norm + 1e-6)))
        for name, g in grads.items():
            clipped = g * scale
            self.m[name] = 0.9 * self.m[name] + 0.1 * clipped
            self.v[name] = 0.999 * self.v[name] + 0.001 * clipped**2
            m, v = self.m[name] / (1 - 0.9**t), self.v[name] / (1 - 0.999**t)
            self.params[name] = self.params[name] * (1 - lr * decay) - lr * m / (np.sqrt(v) + 1e-8)

    def pull(self, request: Tensor, _: Any) -> Tensor:
        with self.done:
            self.done.wait_for(lambda: self.t >= int(request.value))
        return Tensor(value=self.params[request.type_url].tobytes())


def listen(params: Mapping[str, Array], workers: int, rule: Rule) -> tuple[grpc.Server, str]:
    """A server that is started, and where it listens."""
    plain = Server(params, workers, rule)
    server = grpc.server(futures.ThreadPoolExecutor(8), options=NO_LIMIT)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(method, Tensor.FromString, Tensor.SerializeToString)
        for name, method in (("Push", plain.push), ("Pull", plain.pull))
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Plain", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def serve(pipe: Connection, params: Mapping[str, Array], workers: int, rule: Rule) -> None:
    """Serve until the process is ended; sends where it listens."""
    server, target = listen(params, workers, rule)
    pipe.send(target)
    server.wait_for_termination()


class Client:
    """One worker."""

    def __init__(self, target: str) -> None:
        channel = grpc.insecure_channel(target, options=NO_LIMIT)
        self._push, self._pull = (
            channel.unary_unary(f"/Plain/{name}", Tensor.SerializeToString, Tensor.FromString)
            for name in ("Push", "Pull")
        )
        self._done = 0

    def step(self, grads: Mapping[str, Array]) -> dict[str, Array]:
        """Send a gradient, and read the parameters after it."""
        self._done += 1
        for name, gradient in grads.items():
            self._push(Tensor(type_url=name, value=gradient.tobytes()))
        params = {}
        for name, gradient in grads.items():
            answer = self._pull(Tensor(type_url=name, value=str(self._done).encode()))
            params[name] = np.frombuffer(answer.value, np.float32).reshape(gradient.shape).copy()
        return params
