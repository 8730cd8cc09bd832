"""Errors as statuses: what fits into metadata. The way over the wire is in tests/integration/test_errors.py."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from stepd.errors import (
    ERROR_TABLE,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    StepdError,
    Unavailable,
    UnknownParameter,
)
from stepd.status import from_rpc_error, to_status


class Call(grpc.RpcError):
    """A failed call as gRPC hands it to us."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: Any = ()) -> None:
        self._parts = (code, details, trailing)

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str:
        return self._parts[1]

    def trailing_metadata(self) -> Any:
        return self._parts[2]


def there_and_back(error: StepdError) -> StepdError:
    return from_rpc_error(Call(*to_status(error)))


@pytest.mark.parametrize("name", ["w" * 512, "\u6b0a" * 512, "%" * 512, "\U0001f511" * 512, "a\nb\x00c", "\ud800"])
def test_long_and_odd_names_fit_into_metadata(name: str) -> None:
    error = UnknownParameter(f"unknown parameter {name}", parameter=name, near=[name] * 20, run="r")
    status = to_status(error)
    # gRPC encodes printable ASCII but % as one byte, any other byte as three; the binary part as base64.
    encoded = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in status.message.encode())
    assert encoded + len(status.trailing_metadata[0][1]) * 4 / 3 < 7 * 1024
    back = there_and_back(error)
    assert type(back) is UnknownParameter
    assert str(back).startswith("unknown parameter")


def test_what_is_short_is_not_changed() -> None:
    error = InvalidArgument("w: expected (2, 3), got (3, 2) \u2192 100%", expected=(2, 3), given=[3, 2], none=None)
    back = there_and_back(error)
    assert str(back) == str(error)
    assert back.details == {"expected": "(2, 3)", "given": "[3, 2]", "none": "None"}


def test_a_reason_of_a_newer_server_keeps_its_name_and_gets_the_class_of_its_code() -> None:
    back = there_and_back(FailedPrecondition("not on a Sunday", reason="SUNDAY"))
    assert type(back) is FailedPrecondition
    assert back.reason == "SUNDAY"


def test_details_that_are_named_as_our_arguments_do_no_harm() -> None:
    info = error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="stepd", metadata={"message": "a", "reason": "b"})
    status = status_pb2.Status(code=5, message="m")
    status.details.add().Pack(info)
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    assert type(from_rpc_error(Call(grpc.StatusCode.NOT_FOUND, "m", metadata))) is NotFound


@pytest.mark.parametrize("domain", ["", "googleapis.com"])
def test_reasons_of_others_are_not_ours(domain: str) -> None:
    status = status_pb2.Status(code=5, message="m")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="RUN_NOT_FOUND", domain=domain))
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    assert from_rpc_error(Call(grpc.StatusCode.NOT_FOUND, "m", metadata)).reason == "NOT_FOUND"


def test_a_stream_that_ended_in_the_middle_of_a_write_may_be_sent_again() -> None:
    call = Call(grpc.StatusCode.INTERNAL, "Internal error from Core")
    assert type(from_rpc_error(call)) is StepdError
    call.debug_error_string = lambda: 'Failed "execute_batch": (...)'  # type: ignore[attr-defined]
    assert type(from_rpc_error(call)) is Unavailable


def test_a_status_that_does_not_parse_is_as_good_as_none() -> None:
    call = Call(grpc.StatusCode.NOT_FOUND, "m", (("grpc-status-details-bin", b"\xff\xff"),))
    assert type(from_rpc_error(call)) is NotFound


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_code_without_our_details_is_an_error_with_a_reason_of_the_table(code: grpc.StatusCode) -> None:
    error = from_rpc_error(Call(code, "it says"), target="shard:1")
    assert ERROR_TABLE[error.reason] is type(error)
    assert "it says" in str(error)
    assert "shard:1" in str(error)
    assert error.details == {"grpc_code": code.name, "target": "shard:1"}
