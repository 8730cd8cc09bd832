"""A gRPC server with everything that all of stepd's have in common."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health

from stepd.channel import KEEPALIVE_S, SHARED_OPTIONS
from stepd.limits import DRAIN_S, STREAM_WINDOW_BYTES
from stepd.targets import Target
from stepd_server.interceptors import AuthInterceptor, ErrorInterceptor
from stepd_server.ports import bound, resolve
from stepd_server.settings import CannotStart, Security

__all__ = ["Health", "Listener"]

SERVER_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    *SHARED_OPTIONS,
    # What callers have sent and nobody has read yet is bounded, and not measured out by how fast the link is.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    # Without it a second server binds the same port in silence and takes half of the connections.
    ("grpc.so_reuseport", 0),
    # Clients ping every KEEPALIVE_S; a server that finds this too often closes the connection.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_S * 1000 // 2),
)


class Health:
    """What health checks are told: "" as soon as the process answers, `service` once it is ready to serve."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._servicer = grpc_health.HealthServicer()

    def add_to(self, server: grpc.aio.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_alive(self) -> None:
        await self._servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(False)

    async def set_ready(self, ready: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._servicer.set(self._service, status)

    async def set_stopping(self) -> None:
        """From now on nothing is served any more."""
        await self._servicer.enter_graceful_shutdown()


class Listener:
    """One role's server: its port, and the further one for health checks alone if there is to be one.

    Attributes:
        server: where services are added.
        health_target: the further port, once bound.
    """

    def __init__(self, listen: Target, security: Security, health: Health, health_listen: Target | None = None) -> None:
        interceptors: list[grpc.aio.ServerInterceptor] = [ErrorInterceptor()]
        if security.tokens is not None:
            interceptors.insert(0, AuthInterceptor(security.tokens))
        self._listen = listen
        self._security = security
        self._health_listen = health_listen
        self.health_target: Target | None = None
        self.server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        # Of its own, so that nothing that fills the other can keep the orchestrator from its answer.
        self._health_server = grpc.aio.server(options=SERVER_OPTIONS) if health_listen else None
        for server in (self.server, self._health_server):
            if server is not None:
                health.add_to(server)

    def bind(self) -> Target:
        """Take the ports. Raise CannotStart if one of them cannot be had.

        Returns:
            The address with the port that was chosen.
        """
        if self._health_server is not None and self._health_listen is not None:
            self.health_target = _bind(self._health_server, self._health_listen, Security())
        return _bind(self.server, self._listen, self._security)

    async def start(self) -> None:
        await self.server.start()
        if self._health_server is not None:
            await self._health_server.start()

    async def stop(self) -> None:
        """Take no more calls, give those under way DRAIN_S, then end them."""
        await self.server.stop(DRAIN_S)
        if self._health_server is not None:
            await self._health_server.stop(None)


def _bind(server: grpc.aio.Server, listen: Target, security: Security) -> Target:
    address = resolve(listen)
    try:
        if security.tls is None:
            port = server.add_insecure_port(str(address))
        else:
            port = server.add_secure_port(str(address), security.tls.server_credentials())
    except RuntimeError as error:
        raise CannotStart(f"cannot listen on {listen}: {_why_not(address)}") from error
    return Target(listen.host, port)


def _why_not(address: Target) -> str:
    """Why a port cannot be bound; gRPC says it in several lines of its own."""
    try:
        with bound(address) as probe:
            probe.listen()
    except OSError as error:
        return os.strerror(error.errno or errno.EADDRINUSE).lower()
    # It could be bound now: whoever had it has just let go.
    return os.strerror(errno.EADDRINUSE).lower()
