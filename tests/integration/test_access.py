"""Who gets in: tokens, TLS, and what a stranger can make a server do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stepd.channel import TLS, open_channel
from stepd.errors import InvalidArgument, PermissionDenied, StepdError, Unauthenticated, Unavailable
from stepd.limits import MIB
from stepd.status import from_rpc_error
from stepd_server.settings import Security
from tests.integration.rim import CALLS, FLEET, LOOPBACK, TOKENS, USER, Telling, call, connected, telling
from tests.patience import PATIENCE_S

GUARDED = Security(tokens=TOKENS)


async def answer() -> bytes:
    return b"!"


def refused(name: str = "One", request: bytes = b"?", *, token: str | None = None, **options: Any) -> StepdError:
    """How a guarded server answers a call."""

    async def main() -> StepdError:
        async with connected(answer, security=GUARDED, token=token) as (service, channel):
            with pytest.raises(grpc.RpcError) as caught:
                await call(channel, name, request, **options)
            assert service.received == 0
            return from_rpc_error(caught.value)

    return asyncio.run(main())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("token", [USER, FLEET])
def test_a_token_opens_every_kind_of_call(name: str, token: str) -> None:
    async def main() -> bytes:
        async with connected(answer, security=GUARDED, token=token) as (_, channel):
            return await call(channel, name)

    assert asyncio.run(main()) == b"!"


@pytest.mark.parametrize("name", CALLS)
def test_no_token_no_call(name: str) -> None:
    assert type(refused(name)) is Unauthenticated


def test_all_ways_to_be_nobody_read_the_same() -> None:
    def with_metadata(*metadata: tuple[str, str]) -> StepdError:
        return refused(metadata=metadata)

    errors = [
        refused(),
        refused(token="wrong"),
        refused(token=USER + "x"),
        refused(token=USER, metadata=(("authorization", f"Bearer {USER}"),)),  # twice
        with_metadata(("authorization", USER)),
        with_metadata(("authorization", f"Basic {USER}")),
        with_metadata(("authorization", "Bearer ")),
        with_metadata(("authorization", "")),
        with_metadata(("authorization", f"Bearer {'x' * 4096}")),
        refused(service="no.such.Service"),
    ]
    assert {(type(error), str(error), error.reason, *error.details) for error in errors} == {
        (Unauthenticated, "a valid token is needed: authorization: Bearer TOKEN", "UNAUTHENTICATED")
    }


@pytest.mark.parametrize(
    ("service", "name"), [("stepd.v1.ShardControl", "DropRun"), ("stepd.v1.Coordinator", "RegisterShard")]
)
def test_what_servers_say_to_each_other_is_not_for_users(service: str, name: str) -> None:
    error = refused(name, service=service, token=USER)
    assert type(error) is PermissionDenied
    assert error.details == {"method": f"/{service}/{name}"}


def test_a_fleets_token_may_call_it() -> None:
    async def main() -> bytes:
        async with telling(answer, GUARDED) as (_, target, listener):
            Telling(answer).add_to(listener.server, "stepd.v1.ShardControl")
            async with open_channel(str(target), token=FLEET) as channel:
                return await call(channel, "One", service="stepd.v1.ShardControl")

    assert asyncio.run(main()) == b"!"


@pytest.mark.parametrize("name", ["AllOf", "One"])
def test_the_body_of_a_stranger_is_not_received(name: str) -> None:
    """However much a stranger wants to send, flow control stops it after a few windows."""
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(200):
            yield bytes(MIB)
            sent += 1

    async def main() -> None:
        async with connected(answer, security=GUARDED) as (service, channel):
            stream: Any = channel.stream_unary(f"/test.Telling/{name}")
            with pytest.raises(grpc.RpcError) as caught:
                await stream(body(), timeout=PATIENCE_S)
            # Unavailable: the refusal came in the middle of a write.
            assert type(from_rpc_error(caught.value)) in {Unauthenticated, Unavailable}
            assert service.received == 0

    asyncio.run(main())
    assert sent < 40


@pytest.mark.parametrize("token", ["", "two words", "line\nbreak", "\u00e9", "x" * 2000])
def test_what_cannot_be_a_token_is_refused_before_it_is_sent_and_not_shown(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        asyncio.run(_open(token))
    assert not token or token not in str(caught.value) + str(caught.value.details)


async def _open(token: str) -> None:
    open_channel("127.0.0.1:1", token=token)


# --- Health -----------------------------------------------------------------------------------------------------


async def check(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
    status: int = response.status
    return status


def test_health_can_be_checked_without_a_token_but_not_watched() -> None:
    async def main() -> None:
        async with connected(answer, security=GUARDED) as (_, channel):
            assert await check(channel) == health_pb2.HealthCheckResponse.SERVING
            assert await check(channel, "test.Telling") == health_pb2.HealthCheckResponse.NOT_SERVING
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                await stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).read()
            assert type(from_rpc_error(caught.value)) is Unauthenticated

    asyncio.run(main())


def test_the_port_for_health_alone_has_nothing_else(tmp_path: Path, authority: Authority) -> None:
    async def main() -> None:
        security = Security(authority.tls(tmp_path), TOKENS)
        async with telling(answer, security, health=LOOPBACK) as (_, _, listener):
            assert listener.health_target is not None
            async with open_channel(str(listener.health_target)) as channel:
                assert await check(channel) == health_pb2.HealthCheckResponse.SERVING
                with pytest.raises(grpc.RpcError) as caught:
                    await call(channel, "One")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


# --- TLS --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Authority:
    """An authority that makes certificates for this machine."""

    ca: trustme.CA

    def tls(self, folder: Path, *, name: str = "server", with_ca: bool = False) -> TLS:
        issued = self.ca.issue_cert("127.0.0.1", "localhost")
        cert, key, ca = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}-ca.pem"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.touch(0o600)
        key.write_bytes(issued.private_key_pem.bytes())
        ca.write_bytes(self.ca.cert_pem.bytes())
        return TLS(ca=ca if with_ca else None, cert=cert, key=key)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority(trustme.CA())


async def over_tls(server: TLS, client: TLS | None) -> bytes:
    async with connected(answer, security=Security(tls=server), tls=client) as (_, channel):
        return await call(channel, "One", timeout=PATIENCE_S)


@contextlib.contextmanager
def unreachable() -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert type(from_rpc_error(caught.value)) is Unavailable


def test_who_trusts_the_authority_is_served(tmp_path: Path, authority: Authority) -> None:
    server = authority.tls(tmp_path)
    ca = authority.tls(tmp_path, name="client", with_ca=True).ca
    assert asyncio.run(over_tls(server, TLS(ca=ca))) == b"!"
    assert asyncio.run(over_tls(server, TLS(ca=server.cert))) == b"!"  # as the servers of a fleet do without one


def test_plaintext_and_other_authorities_do_not_get_through(tmp_path: Path, authority: Authority) -> None:
    server = authority.tls(tmp_path)
    other = Authority(trustme.CA()).tls(tmp_path, name="other", with_ca=True)
    for client in (None, TLS(), TLS(ca=other.ca)):
        with unreachable():
            asyncio.run(over_tls(server, client))


def test_a_server_with_an_authority_serves_only_whom_it_has_certified(tmp_path: Path, authority: Authority) -> None:
    server = authority.tls(tmp_path, with_ca=True)
    friend = authority.tls(tmp_path, name="friend", with_ca=True)
    stranger = Authority(trustme.CA()).tls(tmp_path, name="stranger")
    assert asyncio.run(over_tls(server, friend)) == b"!"
    for client in (TLS(ca=friend.ca), TLS(ca=friend.ca, cert=stranger.cert, key=stranger.key)):
        with unreachable():
            asyncio.run(over_tls(server, client))


def test_servers_of_a_fleet_reach_each_other_with_what_they_were_given(tmp_path: Path, authority: Authority) -> None:
    async def main(security: Security) -> bytes:
        async with telling(answer, security) as (_, target, _), security.dial(str(target)) as channel:
            return await call(channel, "One", timeout=PATIENCE_S)

    for with_ca in (False, True):
        assert asyncio.run(main(Security(authority.tls(tmp_path, with_ca=with_ca), TOKENS))) == b"!"
