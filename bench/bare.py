"""Bare gRPC: what carries a step, and nothing else. Servers in asyncio with allocators tuned as stepd's are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

import grpc
import grpc.aio

from stepd.limits import MIB
from stepd.memory import tune_malloc

CHUNK = MIB


def serve(pipe: Connection, size: int) -> None:
    """A server that throws away what it gets, gives `size` bytes, and echoes. Sends where it listens."""
    tune_malloc()
    content = memoryview(bytes(size))

    async def push(stream: AsyncIterator[bytes], _: Any) -> bytes:
        async for _message in stream:
            pass
        return b""

    async def pull(_request: bytes, _: Any) -> AsyncIterator[bytes]:
        for at in range(0, size, CHUNK):
            yield bytes(content[at : at + CHUNK])

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    async def run() -> None:
        server = grpc.aio.server()
        handlers = {
            "Push": grpc.stream_unary_rpc_method_handler(push),
            "Pull": grpc.unary_stream_rpc_method_handler(pull),
            "Echo": grpc.unary_unary_rpc_method_handler(echo),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(run())


class Streams:
    """A client that sends `size` bytes to each server and then reads as many, all servers at once. In a loop only."""

    def __init__(self, targets: list[str], size: int) -> None:
        self._channels = [grpc.aio.insecure_channel(target) for target in targets]
        self._size = size
        self._source, self._sink = memoryview(bytes(size)), memoryview(bytearray(size))

    async def step(self) -> None:
        await asyncio.gather(*(self._one(channel) for channel in self._channels))

    async def _one(self, channel: grpc.aio.Channel) -> None:
        push: Any = channel.stream_unary("/Bare/Push")()
        for at in range(0, self._size, CHUNK):
            await push.write(bytes(self._source[at : at + CHUNK]))
        await push.done_writing()
        await push
        at = 0
        async for message in channel.unary_stream("/Bare/Pull")(b""):
            self._sink[at : at + len(message)] = message
            at += len(message)
