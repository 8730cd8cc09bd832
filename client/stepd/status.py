"""Errors as gRPC statuses and back: the edge where the table of stepd.errors is applied.

A status carries exactly one google.rpc.ErrorInfo (domain "stepd", the reason, the details as text) in the trailing
metadata `grpc-status-details-bin`, as google.rpc.Status, which is how every gRPC language knows it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from stepd.errors import (
    ERROR_TABLE,
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    StepdError,
    Unauthenticated,
    Unavailable,
)

__all__ = ["Status", "from_rpc_error", "to_status"]

DOMAIN: Final = "stepd"
DETAILS_KEY: Final = "grpc-status-details-bin"

# The message stands in a status twice (once percent-encoded, once in base64 with the details), and together they have
# to stay below the 8 KiB of metadata that any gRPC client takes: a quoted name can be long.
MESSAGE_BYTES_MAX: Final = 2048
DETAIL_BYTES_MAX: Final = 512
DETAILS_BYTES_MAX: Final = 2048

# For statuses without ErrorInfo: gRPC's own, a proxy's, another program's on that port.
_BY_CODE: Final[dict[grpc.StatusCode, type[StepdError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    # A method that the server does not have: its version and ours are too far apart.
    grpc.StatusCode.UNIMPLEMENTED: FailedPrecondition,
    # A message over gRPC's limit.
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    # The connection, not the call, was refused or lost. What became of the call is not known.
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # A server that stops cancels what is under way. (A call that we cancel ourselves ends otherwise.)
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


_OWN_NAMES: Final = frozenset({"self", "message", "reason"})


class Status(NamedTuple):
    """What `grpc.aio.ServicerContext.abort` takes."""

    code: grpc.StatusCode
    message: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def to_status(error: StepdError) -> Status:
    """The status that carries `error`. Long messages and details are cut; the reason never is."""
    code = grpc.StatusCode[error.code]
    message = _cut(str(error), MESSAGE_BYTES_MAX)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    room = DETAILS_BYTES_MAX
    for key, value in error.details.items():
        text = _cut(str(value), DETAIL_BYTES_MAX)
        room -= len(key) + len(text.encode(errors="replace"))
        if room < 0:
            break
        info.metadata[key] = text
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(info)
    return Status(code, message, ((DETAILS_KEY, status.SerializeToString()),))


def from_rpc_error(error: grpc.RpcError, *, target: str | None = None) -> StepdError:
    """The exception of stepd that a failed call stands for.

    Args:
        error: what a call of `grpc` or `grpc.aio` raised.
        target: whom it was sent to; named in errors of the connection itself.

    Returns:
        What the server raised, if it was one of ours: same class, reason and message, with details as text.
        Otherwise the class of the gRPC code.
    """
    call: Any = error
    code: grpc.StatusCode = call.code()
    message: str = call.details() or ""
    info = _error_info(call.trailing_metadata())
    if info is not None:
        kind = ERROR_TABLE.get(info.reason) or _BY_CODE.get(code, StepdError)
        # `message` and `reason` are parameters of the constructor, and another server may use them as keys.
        details: dict[str, Any] = {key: text for key, text in info.metadata.items() if key not in _OWN_NAMES}
        return kind(message, reason=info.reason, **details)
    if code is grpc.StatusCode.INTERNAL and _ended_while_sending(call):
        code, message = grpc.StatusCode.UNAVAILABLE, "the call ended while its messages were being sent"
    kind = _BY_CODE.get(code, StepdError)
    place = f" from {target}" if target else ""
    prefix = {
        grpc.StatusCode.UNAVAILABLE: f"no answer{place}",
        grpc.StatusCode.CANCELLED: f"no answer{place}: the call was cancelled",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"no answer{place} within the deadline",
        grpc.StatusCode.UNIMPLEMENTED: f"unknown call{place} (a server of another version?)",
    }.get(code, f"{code.name}{place}")
    about = {"grpc_code": code.name, "target": target} if target else {"grpc_code": code.name}
    return kind(f"{prefix}: {message}" if message else prefix, **about)


def _ended_while_sending(call: Any) -> bool:
    """Whether the server ended a stream, for whatever reason, while a write was under way.

    grpc.aio then puts an error of its own in place of the server's status. Who sends again finds out what it was.
    """
    debug_error_string = getattr(call, "debug_error_string", str)
    return str(debug_error_string()).startswith('Failed "execute_batch"')


def _error_info(trailing_metadata: Any) -> error_details_pb2.ErrorInfo | None:
    """Our ErrorInfo, if there is one. A status that does not parse is treated as absent."""
    for key, value in trailing_metadata or ():
        if key == DETAILS_KEY:
            try:
                status = status_pb2.Status.FromString(value)
                for packed in status.details:
                    info = error_details_pb2.ErrorInfo()
                    if packed.Unpack(info) and info.domain == DOMAIN:
                        return info
            except DecodeError:
                continue
    return None


def _cut(text: str, bytes_max: int) -> str:
    """The longest beginning of `text` that is at most so long percent-encoded, which is how gRPC sends messages."""
    text = text.encode(errors="replace").decode()  # no lone surrogates: they have no UTF-8
    if _encoded_size(text) <= bytes_max:
        return text
    ellipsis = "..."
    room, end = bytes_max - len(ellipsis), 0
    for character in text:
        room -= _encoded_size(character)
        if room < 0:
            break
        end += 1
    return text[:end] + ellipsis


def _encoded_size(text: str) -> int:
    # gRPC leaves printable ASCII but the percent sign as it is, and writes three characters for any other byte.
    return sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in text.encode())
