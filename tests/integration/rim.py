"""A server with the rim of all servers (errors, tokens, TLS, health) around a service that does what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from stepd.channel import TLS, open_channel
from stepd.targets import Target
from stepd_server.net import Health, Listener
from stepd_server.settings import Security
from stepd_server.tokens import Role, Tokens

LOOPBACK = Target("127.0.0.1", 0)
NO_SECURITY = Security()
USER, FLEET = "user-token", "fleet-token"
TOKENS = Tokens([(Role.USER, USER), (Role.FLEET, FLEET)])


class Telling:
    """Service `test.Telling`, bytes in and out: every kind of call, each doing `act`."""

    def __init__(self, act: Callable[[], Awaitable[bytes]]) -> None:
        self.act = act
        # Bytes of bodies that have reached the service.
        self.received = 0

    async def one(self, request: bytes, _: object) -> bytes:
        self.received += len(request)
        return await self.act()

    async def many(self, request: bytes, _: object) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self.one(request, None)

    async def written(self, request: bytes, context: Any) -> None:
        await context.write(await self.one(request, None))

    async def all_of(self, requests: AsyncIterator[bytes], _: object) -> bytes:
        async for request in requests:
            self.received += len(request)
        return await self.act()

    async def each_of(self, requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.one(request, None)

    def add_to(self, server: grpc.aio.Server, service: str = "test.Telling") -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "One": grpc.unary_unary_rpc_method_handler(self.one),
            "Many": grpc.unary_stream_rpc_method_handler(self.many),
            "Written": grpc.unary_stream_rpc_method_handler(self.written),
            "AllOf": grpc.stream_unary_rpc_method_handler(self.all_of),
            "EachOf": grpc.stream_stream_rpc_method_handler(self.each_of),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


CALLS = ("One", "Many", "Written", "AllOf", "EachOf")


async def call(
    channel: grpc.aio.Channel, name: str, request: bytes = b"?", *, service: str = "test.Telling", **options: Any
) -> bytes:
    """Make any of the calls to the end. Returns the last message."""
    options.setdefault("timeout", 10)
    path = f"/{service}/{name}"
    kind = {"One": "unary_unary", "AllOf": "stream_unary", "EachOf": "stream_stream"}.get(name, "unary_stream")
    made = getattr(channel, kind)(path)(iter([request]) if kind.startswith("stream") else request, **options)
    messages: list[bytes] = [await made] if kind.endswith("unary") else [message async for message in made]
    return messages[-1]


@contextlib.asynccontextmanager
async def telling(
    act: Callable[[], Awaitable[bytes]], security: Security = NO_SECURITY, health: Target | None = None
) -> AsyncIterator[tuple[Telling, Target, Listener]]:
    """The service on a port of this machine."""
    checks = Health("test.Telling")
    listener = Listener(LOOPBACK, security, checks, health)
    service = Telling(act)
    service.add_to(listener.server)
    target = listener.bind()
    await checks.set_alive()
    await listener.start()
    try:
        yield service, target, listener
    finally:
        await listener.stop()


@contextlib.asynccontextmanager
async def connected(
    act: Callable[[], Awaitable[bytes]], *, token: str | None = None, tls: TLS | None = None, **server: Any
) -> AsyncIterator[tuple[Telling, grpc.aio.Channel]]:
    """The service and a channel to it."""
    async with (
        telling(act, **server) as (service, target, _),
        open_channel(str(target), token=token, tls=tls) as channel,
    ):
        yield service, channel
