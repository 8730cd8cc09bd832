"""Channels: how every connection between parts of stepd is made, on both sides.

gRPC's own retries are off (they replay small payloads only; ours know what a repeat means), compression is off
(gradients do not compress, and a small message must not become a large one), and a peer that stops answering is
noticed within KEEPALIVE_S + KEEPALIVE_TIMEOUT_S, whether calls are under way or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

import grpc
import grpc.aio

from stepd.errors import InvalidArgument
from stepd.limits import KIB, MESSAGE_BYTES_MAX, TOKEN_CHARS_MAX
from stepd.targets import is_loopback, parse_target
from stepd.tls import TLS

__all__ = ["CHANNEL_OPTIONS", "SHARED_OPTIONS", "TLS", "open_channel"]

# A ping so often, and so long for its answer. gRPC's threads answer pings whatever Python is doing.
KEEPALIVE_S: Final = 5
KEEPALIVE_TIMEOUT_S: Final = 5
# Waiting before a connection is tried again: short, as a restarted server is back within a second or two.
RECONNECT_S_MIN: Final = 0.1
RECONNECT_S_MAX: Final = 0.5
# A name is looked up again at most so often; a pod that was moved has another address under its name.
RESOLVE_S: Final = 1
# Status details travel as metadata; stepd.status keeps them below this, gRPC's default soft limit.
METADATA_BYTES_MAX: Final = 8 * KIB

# Wanted on both ends of a connection.
SHARED_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Without it the timeout above is a minute.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit
    ("grpc.compression_enabled_algorithms_bitset", 1),  # bit 0: identity
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
)

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *SHARED_OPTIONS,
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_S_MIN * 1000)),
    # Also how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.max_reconnect_backoff_ms", int(RECONNECT_S_MAX * 1000)),
    ("grpc.dns_min_time_between_resolutions_ms", RESOLVE_S * 1000),
    # A connection of its own for each channel: two clients in one process do not wait for each other's windows.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(target: str, *, token: str | None = None, tls: TLS | None = None) -> grpc.aio.Channel:
    """Make a channel to `target` (HOST:PORT). It connects with its first call.

    To be called in the event loop that uses it. Plaintext without `tls`; `token` goes with every call.
    """
    host = parse_target(target).host
    options: list[tuple[str, Any]] = list(CHANNEL_OPTIONS)
    if is_loopback(host):
        # A proxy of the environment is for elsewhere.
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        channel = grpc.aio.insecure_channel(target, options=options)
    else:
        channel = grpc.aio.secure_channel(target, tls.channel_credentials(), options=options)
    return channel if token is None else _AuthorizedChannel(channel, _authorization(token))


def _authorization(token: str) -> tuple[str, str]:
    if not token or len(token) > TOKEN_CHARS_MAX or not token.isascii() or not token.isprintable() or " " in token:
        # Not with its value: errors end up in logs.
        raise InvalidArgument(
            f"a token is 1 to {TOKEN_CHARS_MAX} printable ASCII characters without spaces, got {len(token)} characters",
            expected=f"1 to {TOKEN_CHARS_MAX} characters",
            given=len(token),
        )
    return ("authorization", f"Bearer {token}")


class _AuthorizedChannel(grpc.aio.Channel):
    """A channel that adds the token to the metadata of every call.

    gRPC's own ways do not serve: call credentials are refused without TLS, and an interceptor puts a queue and a task
    between the caller and the writes of every stream.
    """

    def __init__(self, channel: grpc.aio.Channel, authorization: tuple[str, str]) -> None:
        self._channel = channel
        self._authorization = authorization

    def _authorize(self, call: Callable[..., Any]) -> Any:
        def authorized(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            return call(*args, metadata=(*(metadata or ()), self._authorization), **kwargs)

        return authorized

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._authorize(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._authorize(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._authorize(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._authorize(self._channel.stream_stream(*args, **kwargs))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        return await self._channel.__aexit__(*exc_info)  # type: ignore[arg-type]
