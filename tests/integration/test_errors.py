"""Errors over a real connection: raised by a service, caught by a caller."""

from __future__ import annotations

import asyncio
import logging
from typing import cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from stepd.channel import open_channel
from stepd.errors import (
    ERROR_TABLE,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    RunRewound,
    StepdError,
    Unavailable,
)
from stepd.limits import MESSAGE_BYTES_MAX
from stepd.status import from_rpc_error
from tests.integration.rim import CALLS, call, connected, telling


async def raised(error: BaseException, name: str = "One") -> grpc.RpcError:
    """What a caller gets when a service raises `error`."""

    async def act() -> bytes:
        raise error

    async with connected(act) as (_, channel):
        with pytest.raises(grpc.RpcError) as caught:
            await call(channel, name)
        return caught.value


@pytest.mark.parametrize("reason", ERROR_TABLE)
def test_every_row_of_the_table_comes_back_as_it_was_raised(reason: str) -> None:
    kind = ERROR_TABLE[reason]
    error = asyncio.run(raised(kind("w: expected 3, got 4", reason=reason, parameter="w", expected=3, given=4)))
    back = from_rpc_error(error)
    assert type(back) is kind
    assert back.reason == reason
    assert str(back) == "w: expected 3, got 4"
    assert back.details == {"parameter": "w", "expected": "3", "given": "4"}


@pytest.mark.parametrize("reason", ERROR_TABLE)
def test_every_row_of_the_table_reads_as_googles_own_library_wants_it(reason: str) -> None:
    error = asyncio.run(raised(ERROR_TABLE[reason]("no", reason=reason, run="r")))
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code().name == ERROR_TABLE[reason].code
    status = rpc_status.from_call(cast(grpc.Call, error))
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == ("stepd", reason, {"run": "r"})


def test_every_class_of_error_has_its_own_reason_in_the_table() -> None:
    def kinds(base: type[StepdError]) -> list[type[StepdError]]:
        return [base, *(kind for derived in base.__subclasses__() for kind in kinds(derived))]

    assert {kind.default_reason: kind for kind in kinds(StepdError)}.items() <= ERROR_TABLE.items()


@pytest.mark.parametrize("name", CALLS)
def test_any_kind_of_call_can_fail(name: str) -> None:
    back = from_rpc_error(asyncio.run(raised(RunRewound("back to 7", step=7), name)))
    assert isinstance(back, RunRewound)
    assert back.step == 7


@pytest.mark.parametrize("name", CALLS)
def test_an_unforeseen_error_is_in_the_log_and_opaque_to_the_caller(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        error = from_rpc_error(asyncio.run(raised(KeyError("/secret/path"), name)))
    assert type(error) is StepdError
    assert error.reason == "INTERNAL"
    assert "secret" not in str(error) + str(error.details)
    (record,) = caplog.records
    assert str(error.details["id"]) in record.getMessage()
    assert record.exc_info is not None
    assert "/secret/path" in str(record.exc_info[1])


def test_a_failure_of_another_server_keeps_its_class() -> None:
    async def relayed() -> grpc.RpcError:
        return await raised(await raised(NotFound("no run 'r'", reason="RUN_NOT_FOUND", run="r")))

    back = from_rpc_error(asyncio.run(relayed()))
    assert (type(back), back.reason, back.details) == (NotFound, "RUN_NOT_FOUND", {"run": "r"})


# --- What gRPC itself says --------------------------------------------------------------------------------------


async def answer() -> bytes:
    return b"!"


def test_a_call_that_succeeds_is_left_alone() -> None:
    async def main() -> list[bytes]:
        async with connected(answer) as (_, channel):
            return [await call(channel, name) for name in CALLS]

    assert asyncio.run(main()) == [b"!"] * len(CALLS)


def test_nobody_listening_is_unavailable_and_names_the_target(vacant: str) -> None:
    async def main() -> None:
        async with open_channel(vacant) as channel:
            await call(channel, "One")

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(main())
    error = from_rpc_error(caught.value, target=vacant)
    assert type(error) is Unavailable
    assert error.details["target"] == vacant
    assert vacant in str(error)


def test_an_answer_that_takes_too_long_is_a_deadline_exceeded() -> None:
    async def act() -> bytes:
        await asyncio.sleep(60)
        return b""

    async def main() -> None:
        async with connected(act) as (_, channel):
            await call(channel, "One", timeout=0.2)

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(main())
    assert type(from_rpc_error(caught.value)) is DeadlineExceeded


def test_a_method_that_the_server_does_not_have_is_a_matter_of_versions() -> None:
    async def main() -> None:
        async with connected(answer) as (_, channel):
            await call(channel, "One", service="stepd.v9.Telling")

    with pytest.raises(grpc.RpcError) as caught:
        asyncio.run(main())
    error = from_rpc_error(caught.value)
    assert type(error) is FailedPrecondition
    assert "another version" in str(error)


@pytest.mark.parametrize("name", CALLS)
def test_a_message_over_the_limit_is_refused_and_the_server_goes_on(name: str) -> None:
    async def main() -> bytes:
        # Not our channel: that would not send it.
        async with telling(answer) as (service, target, _), grpc.aio.insecure_channel(str(target)) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                await call(channel, name, bytes(MESSAGE_BYTES_MAX + 1))
            assert type(from_rpc_error(caught.value)) is ResourceExhausted
            assert service.received == 0
            return await call(channel, name)

    assert asyncio.run(main()) == b"!"


def test_a_server_that_stops_is_unavailable_to_whom_it_was_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepd_server.net.DRAIN_S", 0.1)

    async def act() -> bytes:
        await asyncio.sleep(60)
        return b""

    async def main() -> StepdError:
        async with telling(act) as (_, target, listener), open_channel(str(target)) as channel:
            waiting = asyncio.create_task(call(channel, "One"))
            await asyncio.sleep(0.2)
            await listener.stop()
            with pytest.raises(grpc.RpcError) as caught:
                await waiting
            return from_rpc_error(caught.value)

    assert type(asyncio.run(main())) is Unavailable
