"""Bulk messages by hand: headers by the generated classes, chunks without copying their payload more than once.

PushRequest, PullResponse and LoadParametersRequest have one form, {header = 1 | chunk = 2}, and the first two
{encoded = 121} besides. The generated classes take 116 us to build and serialise a chunk of 1 MiB; joining a short
prefix and the payload into the same bytes takes 24 us, and reading the payload where it lies takes none. What does not
look like our own chunks goes to the generated class, so any valid encoding is understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from stepd.errors import InvalidArgument
from stepd.limits import CHUNK_BYTES_MAX
from stepd.v1 import shard_pb2

_MESSAGE_CHUNK = 0x12  # field 2, length-delimited: `chunk` in all three messages
_CHUNK_OFFSET = 0x08  # field 1, varint
_CHUNK_DATA = 0x12  # field 2, length-delimited
_MESSAGE_ENCODED = b"\xca\x07"  # field 121, length-delimited: `encoded` in requests and responses
_ENCODED_OFFSET = 0x08  # field 1, varint
_ENCODED_COUNT = 0x10  # field 2, varint
_HALF_FIELDS: Final = {"bfloat16": 0x1A, "float16": 0x22}  # fields 3 and 4, length-delimited
_HALVES: Final[dict[int, Literal["bfloat16", "float16"]]] = {0x1A: "bfloat16", 0x22: "float16"}
# Prefixes of messages, kept for the next step: those of a shard's piece of a model of 4 GiB.
_PREFIXES_KEPT: Final = 4096
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


class Halves(NamedTuple):
    """Consecutive elements in 16 bits each.

    Attributes:
        offset: of the first element; in elements.
        elements: how many there are, as the message says.
        kind: their type.
        data: their bytes, little-endian, as in Chunk.
    """

    offset: int
    elements: int
    kind: Literal["bfloat16", "float16"]
    data: memoryview


def encode_chunk(offset: int, payload_bytes: int, pieces: Iterable[Any]) -> bytes:
    """One chunk message of pieces laid end to end; copies each byte once.

    The prefix is padded to a multiple of 8 bytes with varints longer than they need to be (which protobuf allows), so
    that the receiver finds the payload aligned: NumPy is several times slower on misaligned arrays.

    Args:
        offset: of the first element.
        payload_bytes: of all pieces together.
        pieces: C-contiguous arrays, or views of bytes.
    """
    return b"".join((_chunk_prefix(offset, payload_bytes), *pieces))


def encode_halves(offset: int, count: int, kind: Literal["bfloat16", "float16"], data: memoryview) -> bytes:
    """One message of elements in 16 bits, as `encode_chunk` one of whole ones."""
    return b"".join((_halves_prefix(offset, count, kind, data.nbytes), data))


@lru_cache(_PREFIXES_KEPT)
def _chunk_prefix(offset: int, size: int) -> bytes:
    return _prefix(bytes((_MESSAGE_CHUNK,)), {_CHUNK_OFFSET: offset}, _CHUNK_DATA, size)


@lru_cache(_PREFIXES_KEPT)
def _halves_prefix(offset: int, count: int, kind: Literal["bfloat16", "float16"], size: int) -> bytes:
    return _prefix(_MESSAGE_ENCODED, {_ENCODED_OFFSET: offset, _ENCODED_COUNT: count}, _HALF_FIELDS[kind], size)


def _prefix(message: bytes, numbers: dict[int, int], data: int, size: int) -> bytes:
    """What stands before the payload.

    Args:
        message: tag of the chunk in its message.
        numbers: the fields before the payload by tag, the offset first.
        data: tag of the payload.
        size: of the payload; in bytes.
    """
    widths = [_varint_bytes(value) for value in numbers.values()]
    size_width = _varint_bytes(size)
    # Payload and the inner fields together need no more bytes for their length than this.
    inner_width = _varint_bytes(size + (len(numbers) + 1) * (_VARINT_BYTES_MAX + 1))
    padding = -(len(message) + len(numbers) + 1 + inner_width + sum(widths) + size_width) % _ALIGNMENT
    wider = min(padding, _VARINT_BYTES_MAX - widths[0])
    widths[0] += wider
    # Past 2^42 elements a chunk may be left misaligned.
    inner_width += min(padding - wider, _LENGTH_BYTES_MAX - inner_width)
    inner = len(numbers) + sum(widths) + 1 + size_width + size
    fields = [
        bytes((tag,)) + _varint(value, width) for (tag, value), width in zip(numbers.items(), widths, strict=True)
    ]
    return b"".join((message, _varint(inner, inner_width), *fields, bytes((data,)), _varint(size, size_width)))


def encode_header(
    kind: type[
        shard_pb2.PushRequest | shard_pb2.PullResponse | shard_pb2.LoadParametersRequest | shard_pb2.StageStateRequest
    ],
    header: Any,
) -> bytes:
    """The header message of a stream."""
    return kind(header=header).SerializeToString()


def encode_field(tag: int, content: bytes) -> bytes:
    """One field that holds bytes or a message, as it stands in the message around it."""
    return b"".join((bytes((tag,)), _varint(len(content), _varint_bytes(len(content))), content))


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


def decode_halves(raw: bytes) -> Halves | None:
    """The elements in a message in the form that encode_halves writes; None if it has another one."""
    if not raw.startswith(_MESSAGE_ENCODED):
        return None
    try:
        inner, at = _read_varint(raw, len(_MESSAGE_ENCODED))
        if at + inner != len(raw) or raw[at] != _ENCODED_OFFSET:
            return None
        offset, at = _read_varint(raw, at + 1)
        if raw[at] != _ENCODED_COUNT:
            return None
        count, at = _read_varint(raw, at + 1)
        kind = _HALVES.get(raw[at])
        size, at = _read_varint(raw, at + 1)
    except IndexError:
        return None
    if kind is None or at + size != len(raw):
        return None
    return Halves(offset, count, kind, memoryview(raw)[at:])


def decode_push(raw: bytes) -> shard_pb2.PushHeader | Chunk | Halves | shard_pb2.SharedChunk | shard_pb2.EncodedChunk:
    return decode_chunk(raw) or decode_halves(raw) or _decode(raw, shard_pb2.PushRequest)


def decode_pull(raw: bytes) -> shard_pb2.PullHeader | Chunk | Halves | shard_pb2.SharedChunk | shard_pb2.EncodedChunk:
    return decode_chunk(raw) or decode_halves(raw) or _decode(raw, shard_pb2.PullResponse)


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
