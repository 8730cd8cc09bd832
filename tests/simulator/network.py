"""Channels and servers as code of stepd sees them: the surface of grpc.aio as far as stepd uses it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final, Protocol

from stepd_server.interceptors import ErrorInterceptor
from tests.simulator.calls import Call, StreamCall, UnaryCall
from tests.simulator.loop import Process, VirtualLoop

# Calls that may still come again.
_RECENT: Final = 30


class Channel:
    """A process's way to a target."""

    def __init__(self, network: Network, process: Process, target: str) -> None:
        self.network = network
        self.process = process
        self.target = target
        self.host = target.partition(":")[0]

    def unary_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        def call(request: Any, timeout: float | None = None, **_: Any) -> UnaryCall:
            one = UnaryCall(self, path, timeout)
            one.deserialize = response_deserializer
            one.sent.append(request_serializer(request) if request_serializer else request)
            one.requests.send(one.sent[0])
            return one

        return call

    def stream_unary(self, path: str, response_deserializer: Any = None, **_: Any) -> Any:
        def call(timeout: float | None = None, **_: Any) -> UnaryCall:
            one = UnaryCall(self, path, timeout)
            one.deserialize = response_deserializer
            return one

        return call

    def unary_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        def call(request: Any, timeout: float | None = None, **_: Any) -> StreamCall:
            one = StreamCall(self, path, timeout)
            one.deserialize = response_deserializer
            one.sent.append(request_serializer(request))
            one.requests.send(one.sent[0])
            return one

        return call

    def stream_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Any:
        def call(timeout: float | None = None, **_: Any) -> StreamCall:
            one = StreamCall(self, path, timeout)
            one.serialize, one.deserialize = request_serializer, response_deserializer
            return one

        return call

    async def close(self, grace: float | None = None) -> None:
        for call in self.network.calls_of(self):
            call.cancel()


class Server:
    """The handlers of one process at one target, behind the interceptor that every real server has."""

    def __init__(self, network: Network, process: Process, target: str) -> None:
        self.process = process
        self._handlers: dict[str, Any] = {}
        self._generic: list[Any] = []
        network.listen(self, target)

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        self._generic.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None: ...

    async def handler(self, path: str) -> Any:
        if path not in self._handlers:
            details: Any = _Details(path)
            found = next(filter(None, (each.service(details) for each in self._generic)))

            async def give(_: Any) -> Any:
                return found

            self._handlers[path] = await ErrorInterceptor().intercept_service(give, details)
        return self._handlers[path]


@dataclass(frozen=True)
class _Details:
    method: str
    invocation_metadata: Any = ()


class Weather(Protocol):
    """What the network asks of the world around it."""

    def arrival(self, source: str, target: str) -> float:
        """When what is sent now from one host to another will be there."""

    def until_noticed(self) -> float:
        """Seconds until a server finds out that a connection is gone."""

    def arrived(self) -> None:
        """Told of every message that has arrived."""


class Network:
    """Attributes:
    servers: by target.
    calls: under way, by number.
    recent: the latest that have ended.
    problems: what no handler of ours may do.
    """

    def __init__(self, loop: VirtualLoop, weather: Weather, watch: Callable[[Call], None]) -> None:
        """Args:
        watch: told of every call when it begins and when it ends.
        """
        self.loop = loop
        self.servers: dict[str, Server] = {}
        self.calls: dict[int, Call] = {}
        self.recent: deque[Call] = deque(maxlen=_RECENT)
        self.numbers = count()
        self.problems: list[str] = []
        self.arrival = weather.arrival
        self.until_noticed = weather.until_noticed
        self.arrived = weather.arrived
        self._watch = watch

    def register(self, call: Call) -> None:
        self.calls[call.number] = call
        self._watch(call)

    def forget(self, call: Call) -> None:
        self.calls.pop(call.number, None)
        self.recent.append(call)
        self._watch(call)

    def calls_of(self, channel: Channel) -> list[Call]:
        return [call for call in self.calls.values() if call.channel is channel]

    def listen(self, server: Server, target: str) -> None:
        self.servers[target] = server
        server.process.on_death.append(partial(self._lose_server, server))

    def add_caller(self, process: Process) -> None:
        process.on_death.append(partial(self._lose_caller, process))

    def _lose_server(self, server: Server) -> None:
        for call in list(self.calls.values()):
            if call.server is server:
                call.cut(lose_request=False)

    def _lose_caller(self, process: Process) -> None:
        for call in list(self.calls.values()):
            if call.channel.process is process:
                call.orphan()
