"""What a server that does not read takes in of a caller's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from stepd.channel import open_channel
from stepd.limits import MIB, STREAM_WINDOW_BYTES
from stepd_server.net import SERVER_OPTIONS
from tests.patience import PATIENCE_S

# Beside the window: the message that is being sent, and one that gRPC has taken from the caller.
ON_THEIR_WAY = 2
# A write that takes so long is held back. (Were it only slow, the test would see less than there is.)
HELD_BACK_S = 0.3


def test_a_stream_that_is_not_read_holds_no_more_than_its_window() -> None:
    """Also after one that was read as fast as it came, from which gRPC would have learned to take more."""

    async def scenario() -> tuple[int, int]:
        reading = asyncio.Event()
        reading.set()

        async def push(stream: AsyncIterator[bytes], _: Any) -> bytes:
            await reading.wait()
            count = 0
            async for message in stream:
                count += len(message) // MIB
            return str(count).encode()

        server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {"Push": grpc.stream_unary_rpc_method_handler(push)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Test", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        channel = open_channel(f"127.0.0.1:{port}")
        method: Any = channel.stream_unary("/Test/Push")
        message = bytes(MIB)

        call = method()
        for _ in range(256):
            await call.write(message)
        await call.done_writing()
        assert await call == b"256"

        reading.clear()
        call, written = method(), 0
        write = asyncio.ensure_future(call.write(message))
        while written < 64 and (await asyncio.wait([write], timeout=HELD_BACK_S))[0]:
            written += 1
            write = asyncio.ensure_future(call.write(message))
        reading.set()
        await write
        await call.done_writing()
        read = int(await call)
        await channel.close()
        await server.stop(None)
        return written, read

    async def limited() -> tuple[int, int]:
        async with asyncio.timeout(PATIENCE_S):
            return await scenario()

    written, read = asyncio.run(limited())
    assert written <= STREAM_WINDOW_BYTES // MIB + ON_THEIR_WAY
    assert read == written + 1
