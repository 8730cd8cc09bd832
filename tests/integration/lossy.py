"""A coordinator behind a door that loses answers: what was asked for is done, and who asked does not hear of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc

Then = Callable[[], object]


class LossyDoor(grpc.GenericRpcHandler):
    """A server that passes calls on to a coordinator.

    Attributes:
        target: for `stepd.connect`.
        asked: how often each method was called.
    """

    def __init__(self, target: str, timeout: float = 60.0) -> None:
        """
        Args:
            target: the coordinator's.
            timeout: seconds for one call.
        """
        self.asked: Counter[str] = Counter()
        self._timeout = timeout
        self._losing: dict[str, list[Then]] = defaultdict(list)
        self._channel = grpc.insecure_channel(target, options=[("grpc.enable_retries", 0)])
        self._server = grpc.server(ThreadPoolExecutor(16), handlers=[self], options=[("grpc.so_reuseport", 0)])
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def lose(self, method: str, *then: Then) -> None:
        """Lose the next answers to a method, one for each of `then`, which is called when the answer is there."""
        self._losing[method] += then

    @property
    def loses(self) -> list[str]:
        """Methods whose answers are yet to be lost."""
        return [method for method, left in self._losing.items() if left]

    def service(self, handler_call_details: Any) -> Any:
        path = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._pass_on(path, request, context))

    def _pass_on(self, path: str, request: bytes, context: grpc.ServicerContext) -> Any:
        method = path.rpartition("/")[2]
        self.asked[method] += 1
        try:
            answer = self._channel.unary_unary(path)(request, timeout=self._timeout)
        except grpc.RpcError as error:
            _pass_error_on(error, context)
        if self._losing[method]:
            self._losing[method].pop(0)()
            context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return answer


def _pass_error_on(error: Any, context: grpc.ServicerContext) -> NoReturn:
    context.set_trailing_metadata(error.trailing_metadata() or ())
    context.abort(error.code(), error.details())
