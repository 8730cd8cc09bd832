"""Bulk messages by hand: headers by the generated classes, chunks without copying their payload more than once.

PushRequest, PullResponse and LoadParametersRequest have one form, {header = 1 | chunk = 2}. The generated classes take
116 us to build and serialise a chunk of 1 MiB; joining a short prefix and the payload into the same bytes takes 24 us,
and reading the payload where it lies takes none. What does not look like our own chunks goes to the generated class, so
any valid encoding is understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from stepd.errors import InvalidArgument
from stepd.limits import CHUNK_BYTES_MAX
from stepd.v1 import shard_pb2

_MESSAGE_CHUNK = 0x12  # field 2, length-delimited: `chunk` in all three messages
_CHUNK_OFFSET = 0x08  # field 1, varint
_CHUNK_DATA = 0x12  # field 2, length-delimited
_VARINT_BYTES_MAX = 10
_LENGTH_BYTES_MAX = 5
_ALIGNMENT = 8

Header = TypeVar("Header", shard_pb2.PushHeader, shard_pb2.PullHeader, shard_pb2.LoadParametersHeader)


class Chunk(NamedTuple):
    """Consecutive elements.

    Attributes:
        offset: of the first element; in elements.
        data: their bytes, little-endian. A view of the message: valid as long as somebody holds it.
    """

    offset: int
    data: memoryview


def encode_chunk(offset: int, payload_bytes: int, pieces: Iterable[memoryview]) -> bytes:
    """One chunk message of pieces laid end to end; copies each byte once.

    The prefix is padded to a multiple of 8 bytes with varints longer than they need to be (which protobuf allows), so
    that the receiver finds the payload aligned: NumPy is several times slower on misaligned arrays.

    Args:
        offset: of the first element.
        payload_bytes: of all pieces together.
        pieces: views of bytes, C-contiguous.
    """
    at = _varint_bytes(offset)
    size = _varint_bytes(payload_bytes)
    # Payload and the two inner fields together need no more bytes for their length than this.
    inner = _varint_bytes(payload_bytes + 2 * _VARINT_BYTES_MAX + 2)
    padding = -(3 + inner + at + size) % _ALIGNMENT
    wider = min(padding, _VARINT_BYTES_MAX - at)
    at += wider
    inner += min(padding - wider, _LENGTH_BYTES_MAX - inner)  # past 2^42 elements a chunk may be left misaligned
    inner_bytes = 2 + at + size + payload_bytes
    prefix = b"".join(
        (
            bytes((_MESSAGE_CHUNK,)),
            _varint(inner_bytes, inner),
            bytes((_CHUNK_OFFSET,)),
            _varint(offset, at),
            bytes((_CHUNK_DATA,)),
            _varint(payload_bytes, size),
        )
    )
    return b"".join((prefix, *pieces))


def encode_header(
    kind: type[
        shard_pb2.PushRequest | shard_pb2.PullResponse | shard_pb2.LoadParametersRequest | shard_pb2.StageStateRequest
    ],
    header: Any,
) -> bytes:
    """The header message of a stream."""
    return kind(header=header).SerializeToString()


def decode_chunk(raw: bytes) -> Chunk | None:
    """The chunk in a message, read in place; None if the message is not one in the form that encode_chunk writes."""
    if not raw or raw[0] != _MESSAGE_CHUNK:
        return None
    try:
        inner, at = _read_varint(raw, 1)
        if at + inner != len(raw):
            return None
        offset = 0
        if raw[at] == _CHUNK_OFFSET:
            offset, at = _read_varint(raw, at + 1)
        if raw[at] != _CHUNK_DATA:
            return None
        size, at = _read_varint(raw, at + 1)
    except IndexError:
        return None
    if at + size != len(raw):
        return None
    return Chunk(offset, memoryview(raw)[at:])


def decode_push(raw: bytes) -> shard_pb2.PushHeader | Chunk | shard_pb2.SharedChunk | shard_pb2.EncodedChunk:
    return decode_chunk(raw) or _decode(raw, shard_pb2.PushRequest)


def decode_pull(raw: bytes) -> shard_pb2.PullHeader | Chunk | shard_pb2.SharedChunk | shard_pb2.EncodedChunk:
    return decode_chunk(raw) or _decode(raw, shard_pb2.PullResponse)


def decode_load(raw: bytes) -> shard_pb2.LoadParametersHeader | Chunk:
    return decode_chunk(raw) or _decode(raw, shard_pb2.LoadParametersRequest)


def decode_stage(raw: bytes) -> shard_pb2.StageStateHeader | Chunk:
    return decode_chunk(raw) or _decode(raw, shard_pb2.StageStateRequest)


def _decode(raw: bytes, kind: Any) -> Any:
    """The slow and general way, by the generated class."""
    try:
        message = kind.FromString(raw)
    except DecodeError as error:
        raise InvalidArgument(
            f"not a {kind.__name__}: {len(raw)} bytes that do not parse", reason="BAD_CHUNK"
        ) from error
    match message.WhichOneof("message"):
        case "header":
            return message.header
        case "chunk":
            return Chunk(message.chunk.offset, memoryview(message.chunk.data))
        case "shared" | "encoded" as field:
            return getattr(message, field)
        case _:
            raise InvalidArgument(f"a {kind.__name__} with neither header nor chunk", reason="BAD_CHUNK")


def check_chunk(chunk: Chunk, expected_offset: int, end: int, element_bytes: int, most: int = CHUNK_BYTES_MAX) -> int:
    """Raise unless the chunk continues a stream at `expected_offset` and ends by `end`; give its number of elements."""
    size = chunk.data.nbytes
    if size == 0 or size % element_bytes or size > most:
        raise InvalidArgument(
            f"a chunk must hold 1 to {most} bytes of whole elements of {element_bytes} bytes, got {size}",
            reason="BAD_CHUNK",
            given=size,
        )
    count = size // element_bytes
    if chunk.offset != expected_offset:
        raise InvalidArgument(
            f"the next chunk must start at element {expected_offset}, got {chunk.offset}",
            reason="BAD_CHUNK",
            expected=expected_offset,
            given=chunk.offset,
        )
    if chunk.offset + count > end:
        raise InvalidArgument(
            f"the stream has {end} elements, but a chunk goes to {chunk.offset + count}",
            reason="BAD_CHUNK",
            expected=end,
            given=chunk.offset + count,
        )
    return count


def _varint_bytes(value: int) -> int:
    """How many bytes a varint needs."""
    return max(1, (value.bit_length() + 6) // 7)


def _varint(value: int, width: int) -> bytes:
    """A varint of exactly `width` bytes, which may be more than it needs."""
    groups = [value >> 7 * i & 0x7F for i in range(width)]
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at `at` and the place after it. IndexError if it does not end."""
    value = shift = 0
    for _ in range(_VARINT_BYTES_MAX):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise IndexError
