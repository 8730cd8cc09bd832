"""Push and Pull in one message each way, for small models: what stands in both. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError

from stepd import encodings, wire
from stepd.buffers import Receiver
from stepd.errors import InvalidArgument, StepdError
from stepd.limits import AT_ONCE_BYTES_MAX, AT_ONCE_MESSAGE_BYTES_MAX
from stepd.one_version import OnHeader
from stepd.v1 import shard_pb2

_FIRST = 0x0A  # field 1, length-delimited
_SECOND = 0x12  # field 2, length-delimited


def encode_request(push: Iterable[bytes], pull: shard_pb2.PullRequest) -> bytes:
    """A PushAndPullRequest.

    Args:
        push: the messages of the one.
        pull: the other.
    """
    return b"".join(
        [
            *(wire.encode_field(_FIRST, message) for message in push),
            wire.encode_field(_SECOND, pull.SerializeToString()),
        ]
    )


def decode_request(raw: bytes) -> shard_pb2.PushAndPullRequest:
    """InvalidArgument if it is not one that may be answered, whatever the run."""
    if len(raw) > AT_ONCE_MESSAGE_BYTES_MAX:
        raise _refused("message", f"up to {AT_ONCE_MESSAGE_BYTES_MAX} bytes", len(raw))
    try:
        request = shard_pb2.PushAndPullRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument(f"not a PushAndPullRequest: {len(raw)} bytes that do not parse") from error
    pull, run = request.pull, request.push[0].header.run if request.push else ""
    if pull.run != run:
        raise _refused("pull.run", f"the run that is pushed to, {run!r}", pull.run)
    if pull.shared or pull.state or pull.averaged:
        raise _refused("pull", "parameters that are sent", "another kind")
    return request


def check_size(field: str, elements: int, itemsize: int) -> None:
    """Raise unless so many elements may go in one message."""
    if elements * itemsize > AT_ONCE_BYTES_MAX:
        raise _refused(field, f"up to {AT_ONCE_BYTES_MAX} bytes", elements * itemsize)


def encode_response(receipt: shard_pb2.PushResponse, pulled: Iterable[bytes]) -> bytes:
    """A PushAndPullResponse.

    Args:
        receipt: of the one.
        pulled: the messages of the other.
    """
    return b"".join(
        [
            wire.encode_field(_FIRST, receipt.SerializeToString()),
            *(wire.encode_field(_SECOND, message) for message in pulled),
        ]
    )


def receive(
    response: shard_pb2.PushAndPullResponse, on_header: OnHeader, receiver: Callable[[], Receiver]
) -> shard_pb2.PullHeader | None:
    """Take the parameters that came; their header, or None if they have to be asked for.

    Args:
        response: what came.
        on_header: called before anything is written; may raise.
        receiver: gives what takes the chunks.
    """
    if not response.pulled:
        return None
    if response.pulled[0].WhichOneof("message") != "header":
        raise StepdError("a shard's pull did not begin with a header")
    header = response.pulled[0].header
    on_header(header)
    taking = receiver()
    for message in response.pulled[1:]:
        taking.take(_chunk(message))
    if not taking.complete:
        raise StepdError("a shard ended a pull before its end")
    return header


def _chunk(message: shard_pb2.PullResponse) -> wire.Chunk:
    match message.WhichOneof("message"):
        case "chunk":
            return wire.Chunk(message.chunk.offset, memoryview(message.chunk.data))
        case "encoded":
            return encodings.decoded(message.encoded)
    raise StepdError("a shard sent what is no chunk in a pull")


def _refused(field: str, expected: str, given: object) -> InvalidArgument:
    return InvalidArgument(
        f"PushAndPull: {field} must be {expected}, got {given!r}", field=field, expected=expected, given=given
    )
