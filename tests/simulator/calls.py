"""Calls under way: bytes that travel between a caller and a handler through the weather.

The surface is that of grpc.aio as far as stepd uses it. Every call goes its own way: requests and answers take their
time, arrive in order within a stream and in any order between streams, and may be cut off on either side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from tests.simulator.loop import NOBODY

if TYPE_CHECKING:
    from tests.simulator.network import Channel, Network, Server

# Messages of one stream on their way, before its sender waits: flow control.
WINDOW: Final = 1
# Seconds between two messages of a stream: timers of the same time have no order.
_APART: Final = 1e-7

_UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode
    details: str = ""
    trailing: Any = ()


_OK: Final = Status(grpc.StatusCode.OK)


class Pipe:
    """One direction of one call: first in, first out.

    Attributes:
        items: that have arrived, and are not read.
    """

    def __init__(self, network: Network, source: str, target: str) -> None:
        self._network = network
        self._ends = (source, target)
        self.items: deque[Any] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._on_the_way = 0
        self._last = 0.0
        self._on_arrival: Callable[[], None] | None = None
        # Nothing arrives any more.
        self.broken = False
        # Whoever would send learns that nobody reads.
        self.closed = False

    def send(self, item: Any) -> None:
        self._on_the_way += 1
        self._last = max(self._last + _APART, self._network.arrival(*self._ends))
        self._network.loop.call_at(self._last, self._arrive, item, context=NOBODY)

    def then(self, action: Callable[[], None]) -> None:
        """Do something at the other end when all that was sent has arrived there, or would have."""
        self._last = max(self._last + _APART, self._network.arrival(*self._ends))
        self._network.loop.call_at(self._last, action, context=NOBODY)

    def _arrive(self, item: Any) -> None:
        if not self.broken:
            self.hand_over(item)
            self._network.arrived()

    def hand_over(self, item: Any) -> None:
        """Let the reader have something that has not come this way."""
        self.items.append(item)
        _wake(self._waiting)

    def close(self) -> None:
        self.closed = True
        _wake(self._room)

    @property
    def full(self) -> bool:
        """Whether a sender waits."""
        return self._on_the_way >= WINDOW and not self.closed

    async def room(self) -> None:
        """Wait until one more may be sent."""
        while self.full:
            self._room = self._network.loop.create_future()
            await self._room

    async def get(self) -> Any:
        while not self.items:
            self._waiting = self._network.loop.create_future()
            await self._waiting
        return self.take()

    def take(self) -> Any:
        """What is there by now."""
        self._on_the_way -= 1
        _wake(self._room)
        return self.items.popleft()


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


_END: Final = object()


class Call:
    """A call under way, on both sides."""

    serialize: Any = None

    def __init__(self, channel: Channel, path: str, timeout: float | None, *, twin: Call | None = None) -> None:
        """Args:
        twin: the call whose requests these are, once more.
        """
        network = channel.network
        self.twin = twin
        self.path = path
        self.channel = channel
        self.network = network
        self.number = next(network.numbers)
        self.server: Server | None = None
        self.requests = Pipe(network, channel.process.name, channel.host)
        self.answers = Pipe(network, channel.host, channel.process.name)
        # The dead send nothing.
        self.requests.broken = channel.process.dead
        self.status: Status | None = None
        # What the caller has sent.
        self.sent: list[bytes] = []
        self._ended: asyncio.Future[None] = network.loop.create_future()
        self._handler: asyncio.Task[Any] | None = None
        self._timer = None
        if timeout is not None:
            late = Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            self._timer = network.loop.call_later(timeout, self._give_up, late, context=NOBODY)
        if twin is None:
            self.requests.then(self._open)
            network.register(self)
        else:
            self.requests.broken = False
            # Nobody reads the answers, and nobody is held back by that.
            self.answers.broken = self.answers.closed = True

    # --- The server's side ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.requests.broken:
            return
        server = self.network.servers.get(self.channel.target)
        if self.twin is not None and server is not self.twin.server:
            return
        if server is None or server.process.dead:
            self.answers.then(partial(self._answered, Status(_UNAVAILABLE, "nobody listens")))
            return
        self.server = server
        self._handler = server.process.start(self._serve(server))

    async def _serve(self, server: Server) -> None:
        handler = await server.handler(self.path)
        context = Context(self)
        status = _OK
        try:
            if handler.request_streaming:
                request: Any = self._incoming(handler.request_deserializer)
            else:
                request = await self.requests.get()
                if handler.request_deserializer:
                    request = handler.request_deserializer(request)
            if handler.response_streaming:
                behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
                async for message in behaviour(request, context):
                    if self.answers.full:
                        await self.answers.room()
                    self._answer(handler, message)
            else:
                behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
                self._answer(handler, await behaviour(request, context))
        except grpc.aio.AbortError:
            status = context.aborted
        except asyncio.CancelledError:
            status = Status(grpc.StatusCode.CANCELLED, "the handler was cancelled")
        except Exception as error:  # noqa: BLE001 (told)
            status = Status(grpc.StatusCode.UNKNOWN, repr(error))
            self.network.problems.append(f"{self.path} raised {error!r}")
        self.answers.then(partial(self._answered, status))

    def _answer(self, handler: Any, message: Any) -> None:
        serialize = handler.response_serializer
        self.answers.send(serialize(message) if serialize else bytes(message))

    async def _incoming(self, deserialize: Any) -> AsyncIterator[Any]:
        requests = self.requests
        while (item := requests.take() if requests.items else await requests.get()) is not _END:
            yield deserialize(item) if deserialize else item

    def drop_handler(self) -> None:
        """The caller is gone, as far as the server can see."""
        self.answers.broken = True
        self.answers.close()
        if self._handler is not None:
            self._handler.cancel()

    # --- The caller's side ----------------------------------------------------------------------------------------

    def _answered(self, status: Status) -> None:
        if not self.answers.broken:
            self.end(status)

    def end(self, status: Status) -> None:
        """The caller learns how it ended."""
        if self.status is not None:
            return
        self.status = status
        self.network.forget(self)
        if self._timer is not None:
            self._timer.cancel()
        self.requests.close()
        # What has arrived before the status is read before it, and nothing after it.
        self.answers.hand_over(_END)
        self.answers.broken = True
        if not self._ended.done():
            self._ended.set_result(None)

    def _give_up(self, status: Status) -> None:
        if self.status is None:
            self.requests.then(self.drop_handler)
            self.end(status)

    def cancel(self) -> bool:
        if self.status is not None:
            return False
        self._give_up(Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"))
        return True

    def cut(self, *, lose_request: bool) -> None:
        """Break the connection under it: the caller has no answer, whatever has become of the call.

        Args:
            lose_request: what was sent and has not arrived is lost, and the handler is ended soon. Otherwise it goes on
                for nobody until the server notices.
        """
        if self.status is not None:
            return
        self.answers.broken = True
        if lose_request:
            self.requests.broken = True
            self.requests.then(self.drop_handler)
        else:
            self.answers.close()
            self.network.loop.call_later(self.network.until_noticed(), self.drop_handler, context=NOBODY)
        at = self.network.arrival(self.channel.host, self.channel.process.name)
        self.network.loop.call_at(at, self.end, Status(_UNAVAILABLE, "the connection was lost"), context=NOBODY)

    def again(self, seconds: float) -> None:
        """Let what was sent arrive once more at the same server, as from a caller that is gone by then."""
        copy = Call(self.channel, self.path, None, twin=self)
        for raw in self.sent:
            copy.requests.hand_over(raw)
        copy.requests.hand_over(_END)
        self.network.loop.call_later(seconds, copy._open, context=NOBODY)

    def orphan(self) -> None:
        """The caller has died."""
        if self.status is None:
            self.requests.then(self.drop_handler)
            self.end(Status(grpc.StatusCode.CANCELLED, "the caller has died"))

    def raise_status(self) -> None:
        status = self.status
        assert status is not None
        if status.code is grpc.StatusCode.CANCELLED and status.details.startswith("Locally"):
            raise asyncio.CancelledError
        if status.code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(
                status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing), details=status.details
            )

    # --- As grpc.aio has it ---------------------------------------------------------------------------------------

    async def write(self, message: Any) -> None:
        if self.status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self.requests.full:
            await self._or_cancel(self.requests.room())
        if self.status is not None:
            self.raise_status()
            raise asyncio.InvalidStateError("RPC already finished.")
        self.sent.append(self.serialize(message) if self.serialize else bytes(message))
        self.requests.send(self.sent[-1])

    def done(self) -> bool:
        return self.status is not None

    async def done_writing(self) -> None:
        if self.status is None:
            self.requests.send(_END)

    async def _or_cancel(self, work: Any) -> Any:
        try:
            return await work
        except asyncio.CancelledError:
            self.cancel()
            raise


class UnaryCall(Call):
    """Awaited, it gives its one answer."""

    deserialize: Any = None

    def __await__(self) -> Any:
        return self._or_cancel(self._wait()).__await__()

    async def _wait(self) -> Any:
        await self._ended
        self.raise_status()
        return self.deserialize(await self.answers.get())


class StreamCall(Call):
    """Read or iterated over, it gives its answers."""

    deserialize: Any = None

    async def read(self) -> Any:
        raw = self.answers.take() if self.answers.items else await self._or_cancel(self.answers.get())
        if raw is _END:
            self.answers.hand_over(_END)
            self.raise_status()
            return grpc.aio.EOF
        return self.deserialize(raw) if self.deserialize else raw

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message


class Context:
    """What a handler is told of its call."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.aborted = Status(grpc.StatusCode.UNKNOWN)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self.aborted = Status(code, details, trailing_metadata)
        raise grpc.aio.AbortError

    async def send_initial_metadata(self, _: Any) -> None: ...
