"""What a server is started with."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepd.targets import Target, is_loopback
from stepd.tls import TLS
from stepd_server.tokens import Tokens

if TYPE_CHECKING:
    import grpc.aio

__all__ = [
    "CannotStart",
    "CoordinatorSettings",
    "FleetSettings",
    "Security",
    "ShardSettings",
    "check_exposure",
    "cores",
]


class CannotStart(Exception):
    """A server cannot start; the message is the one line to print, empty if a process of it has done so.

    Attributes:
        exit_code: 1 failed, 2 wrong usage.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Security:
    """Who may connect.

    Attributes:
        tls: our certificate; None listens in plaintext.
        tokens: who may call what; None lets everybody.
    """

    tls: TLS | None = None
    tokens: Tokens | None = None

    def dial(self, target: str) -> grpc.aio.Channel:
        """Open a channel to another server of the fleet."""
        from stepd.channel import open_channel  # noqa: PLC0415 (a supervisor opens none, and gRPC takes a while)

        # Servers that were given no authority share one certificate, which then stands for itself.
        tls = self.tls and TLS(ca=self.tls.ca or self.tls.cert, cert=self.tls.cert, key=self.tls.key)
        token = None if self.tokens is None else self.tokens.fleet_token
        return open_channel(target, token=token, tls=tls)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What all servers have in common.

    Attributes:
        listen: port 0 lets the system choose.
        data_dir: for what survives a restart of the process; None keeps everything in memory.
        health: a further port for health checks alone.
        metrics: a further port for metrics, over HTTP; None serves none.
        json: print events as JSON.
        lifeline: end when standard input is closed.
    """

    listen: Target
    data_dir: Path | None = None
    health: Target | None = None
    metrics: Target | None = None
    security: Security = Security()
    json: bool = False
    lifeline: bool = False


@dataclass(frozen=True, kw_only=True)
class CoordinatorSettings(ServerSettings):
    """A coordinator's.

    Attributes:
        shards: how many the fleet has.
    """

    shards: int


@dataclass(frozen=True, kw_only=True)
class ShardSettings(ServerSettings):
    """A shard's.

    Attributes:
        index: which of the fleet's shards it is, from 0.
        coordinator: where to register.
        advertise: the address that others reach it at; None for that of `listen`, and port 0 for its port.
        threads: that it computes with; None for one for each core.
    """

    index: int
    coordinator: Target
    advertise: Target | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class FleetSettings(ServerSettings):
    """A supervisor's.

    Attributes:
        shards: how many processes of them to start.
        advertise: the name under which other machines reach this one; None for the host of `listen`.
        tokens_file: where `security.tokens` came from.
        insecure: whether exposure without TLS and tokens was asked for.
        threads: that each shard computes with; None for its share of the cores.
    """

    shards: int = 1
    threads: int | None = None
    advertise: str | None = None
    tokens_file: Path | None = None
    insecure: bool = False


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def check_exposure(listen: Target, security: Security, *, insecure: bool) -> None:
    """Refuse to listen where other machines can connect without TLS and tokens, unless told to."""
    if insecure or is_loopback(listen.host) or (security.tls and security.tokens):
        return
    lacking = [
        flags
        for flags, given in (("--tls-cert and --tls-key", security.tls), ("--tokens", security.tokens))
        if not given
    ]
    raise CannotStart(
        f"refusing to listen on {listen}, which other machines can reach, without {' and '.join(lacking)} "
        "(--insecure does it all the same)",
        exit_code=2,
    )
