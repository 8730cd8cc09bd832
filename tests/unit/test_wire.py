"""Chunks written by hand are valid protobuf, chunks of others are understood, and nonsense is refused."""

import contextlib
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepd import wire
from stepd.errors import InvalidArgument
from stepd.limits import CHUNK_BYTES_MAX
from stepd.v1 import shard_pb2

KINDS = [shard_pb2.PushRequest, shard_pb2.PullResponse, shard_pb2.LoadParametersRequest]
OFFSETS = st.one_of(st.integers(0, 300), st.integers(0, 2**44))


@given(OFFSETS, st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.sampled_from(KINDS))
def test_the_generated_class_reads_what_we_write(offset: int, pieces: list[bytes], kind: type) -> None:
    """Pieces arrive end to end, in any of the three messages."""
    whole = b"".join(pieces)
    raw = wire.encode_chunk(offset, len(whole), [memoryview(p) for p in pieces])
    message = kind.FromString(raw)  # type: ignore[attr-defined]
    assert (message.chunk.offset, message.chunk.data) == (offset, whole)


@given(OFFSETS, st.binary(min_size=1, max_size=300))
def test_we_read_in_place_what_we_write(offset: int, data: bytes) -> None:
    """Without copying: the payload is a view of the message."""
    raw = wire.encode_chunk(offset, len(data), [memoryview(data)])
    chunk = wire.decode_chunk(raw)
    assert chunk is not None
    assert (chunk.offset, bytes(chunk.data)) == (offset, data)
    assert chunk.data.obj is raw


@given(OFFSETS, st.binary(max_size=300))
def test_we_read_what_the_generated_class_writes(offset: int, data: bytes) -> None:
    """A client in another language need not know our form."""
    raw = shard_pb2.PushRequest(chunk=shard_pb2.Chunk(offset=offset, data=data)).SerializeToString()
    chunk = wire.decode_push(raw)
    assert isinstance(chunk, wire.Chunk)
    assert (chunk.offset, bytes(chunk.data)) == (offset, data)


@given(st.integers(0, 2**35 - 1), st.integers(1, CHUNK_BYTES_MAX))
def test_payloads_are_aligned(offset: int, size: int) -> None:
    """NumPy is several times slower on misaligned arrays."""
    raw = wire.encode_chunk(offset, size, [memoryview(bytes(size))])
    assert (len(raw) - size) % 8 == 0
    chunk = wire.decode_chunk(raw)
    assert chunk is not None
    assert np.frombuffer(chunk.data, np.uint8).ctypes.data % 8 == 0


@given(OFFSETS, st.integers(0, 2**19), st.sampled_from(["bfloat16", "float16"]), st.binary(max_size=300))
def test_elements_of_16_bits_are_written_and_read_as_chunks_are(
    offset: int, elements: int, kind: Literal["bfloat16", "float16"], data: bytes
) -> None:
    """Also what the generated class writes, by the slow way."""
    raw = wire.encode_halves(offset, elements, kind, memoryview(data))
    encoded = shard_pb2.PushRequest.FromString(raw).encoded
    for same in (encoded, shard_pb2.PullResponse.FromString(raw).encoded):
        assert same == encoded
        assert (encoded.offset, encoded.count, encoded.WhichOneof("values")) == (offset, elements, kind)
        assert getattr(encoded, kind) == data
    assert (len(raw) - len(data)) % 8 == 0
    for halves in (wire.decode_push(raw), wire.decode_pull(raw)):
        assert isinstance(halves, wire.Halves)
        assert halves == (offset, elements, kind, data)
        assert halves.data.obj is raw
    theirs = wire.decode_push(shard_pb2.PushRequest(encoded=encoded).SerializeToString())
    assert theirs == (wire.Halves(offset, elements, kind, memoryview(data)) if offset and elements else encoded)


@given(OFFSETS, st.binary(max_size=60), st.data())
def test_a_message_of_16_bits_that_is_cut_or_changed_is_read_or_refused(
    offset: int, payload: bytes, data: st.DataObject
) -> None:
    raw = wire.encode_halves(offset, 1, "bfloat16", memoryview(payload))
    at = data.draw(st.integers(0, len(raw) - 1))
    for broken in (raw[:at], raw[:at] + bytes((raw[at] ^ data.draw(st.integers(1, 255)),)) + raw[at + 1 :]):
        with contextlib.suppress(InvalidArgument):
            wire.decode_push(broken)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Never another exception than InvalidArgument."""
    for decode in (wire.decode_push, wire.decode_pull, wire.decode_load):
        with contextlib.suppress(InvalidArgument):
            decode(raw)


def test_headers_are_told_from_chunks() -> None:
    """Each stream begins with its own header."""
    raw = wire.encode_header(shard_pb2.PushRequest, shard_pb2.PushHeader(run="digits"))
    header = wire.decode_push(raw)
    assert isinstance(header, shard_pb2.PushHeader)
    assert header.run == "digits"


@pytest.mark.parametrize(
    ("offset", "size", "given_value"),
    [(8, 4, 8), (4, 0, 0), (4, 6, 6), (4, CHUNK_BYTES_MAX + 4, CHUNK_BYTES_MAX + 4), (4, 32, 12)],
    ids=["gap", "empty", "half an element", "too large", "past the end"],
)
def test_a_chunk_that_does_not_continue_the_stream_is_refused(offset: int, size: int, given_value: int) -> None:
    """The error names what was given."""
    with pytest.raises(InvalidArgument) as caught:
        wire.check_chunk(wire.Chunk(offset, memoryview(bytes(size))), expected_offset=4, end=10, element_bytes=4)
    assert caught.value.reason == "BAD_CHUNK"
    assert caught.value.details["given"] == given_value


def test_a_chunk_that_continues_the_stream_is_counted_in_elements() -> None:
    """6 elements from 4 to 10."""
    assert wire.check_chunk(wire.Chunk(4, memoryview(bytes(24))), expected_offset=4, end=10, element_bytes=4) == 6
