"""Connections that are quiet, and connections to a peer that has stopped."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stepd import channel as channels
from stepd.errors import Unavailable
from stepd.status import from_rpc_error
from stepd_server import net
from tests.integration.rim import call, connected
from tests.integration.servers import Server
from tests.patience import PATIENCE_S

QUICKER = 10


def quicker(options: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    pings = [name for name, _ in options if name.endswith("_ms") and ("keepalive" in name or "ping" in name)]
    return tuple((name, value // QUICKER if name in pings else value) for name, value in options)


def test_a_quiet_connection_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call may wait in silence for longer than many pings take: a server must not find its own clients too lively.

    All intervals are shortened alike; those of options whose names gRPC does not know would keep their defaults of
    minutes, and the third ping would end the connection.
    """
    monkeypatch.setattr(channels, "CHANNEL_OPTIONS", quicker(channels.CHANNEL_OPTIONS))
    monkeypatch.setattr(net, "SERVER_OPTIONS", quicker(net.SERVER_OPTIONS))

    async def act() -> bytes:
        await asyncio.sleep(20 * channels.KEEPALIVE_S / QUICKER)
        return b"!"

    async def main() -> bytes:
        async with connected(act) as (_, channel):
            return await call(channel, "One", timeout=PATIENCE_S)

    assert asyncio.run(main()) == b"!"


def test_a_peer_that_has_stopped_is_noticed() -> None:
    """As a machine that lost its power: nothing closes the connection."""

    async def watch(target: str, server: Server) -> float:
        async with channels.open_channel(target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watching = stub.Watch(health_pb2.HealthCheckRequest())
            await watching.read()
            server.signal(signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(grpc.RpcError) as caught:
                await watching.read()
            assert type(from_rpc_error(caught.value)) is Unavailable
            return time.monotonic() - began

    with Server("coordinator", "--listen=127.0.0.1:0", "--shards=1", "--json") as server:
        try:
            waited_s = asyncio.run(watch(server.event()["target"], server))
        finally:
            server.signal(signal.SIGCONT)
    assert waited_s < channels.KEEPALIVE_S + channels.KEEPALIVE_TIMEOUT_S + 30
