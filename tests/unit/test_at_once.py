"""Push and Pull in one message: what may go in one, and what stands in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest

from stepd import at_once, wire
from stepd.buffers import Receiver, Segment
from stepd.errors import InvalidArgument, StepdError
from stepd.limits import AT_ONCE_BYTES_MAX, AT_ONCE_MESSAGE_BYTES_MAX
from stepd.v1 import shard_pb2

PULL = shard_pb2.PullRequest(run="run", round=3)


def receiver(region: Any) -> Receiver:
    """Of a pull that fills a region."""
    return Receiver([Segment(0, region.size, 0, 0)], [region], region.dtype)


def unexpected(*_: object) -> NoReturn:
    raise AssertionError


def push(size: int = 3, run: str = "run") -> list[bytes]:
    values = np.arange(size, dtype=np.float32)
    header = shard_pb2.PushHeader(run=run, sequence=7)
    return [
        wire.encode_header(shard_pb2.PushRequest, header),
        wire.encode_chunk(0, values.nbytes, [memoryview(values).cast("B")]),
    ]


@pytest.mark.parametrize("size", [1, 30, 5000, AT_ONCE_BYTES_MAX // 4])
def test_what_is_written_by_hand_is_what_the_generated_classes_read(size: int) -> None:
    request = shard_pb2.PushAndPullRequest.FromString(at_once.encode_request(push(size), PULL))
    assert request.pull == PULL
    header, chunk = request.push
    assert header.header.sequence == 7
    np.testing.assert_array_equal(np.frombuffer(chunk.chunk.data, np.float32), np.arange(size, dtype=np.float32))
    assert at_once.decode_request(request.SerializeToString()) == request


def test_an_answer_is_a_receipt_and_what_a_pull_gives() -> None:
    receipt = shard_pb2.PushResponse(status=shard_pb2.RECEIPT_STATUS_ACCEPTED, step=4)
    header = shard_pb2.PullHeader(step=5)
    pulled = [wire.encode_header(shard_pb2.PullResponse, header), wire.encode_chunk(0, 4, [memoryview(b"abcd")])]
    response = shard_pb2.PushAndPullResponse.FromString(at_once.encode_response(receipt, pulled))
    assert response.receipt == receipt
    told, taken = list[shard_pb2.PullHeader](), np.zeros(1, np.int32)
    assert at_once.receive(response, told.append, lambda: receiver(taken)) == header
    assert told == [header]
    assert taken.tobytes() == b"abcd"


def test_an_answer_without_parameters_has_a_receipt() -> None:
    receipt = shard_pb2.PushResponse(status=shard_pb2.RECEIPT_STATUS_LATE)
    response = shard_pb2.PushAndPullResponse.FromString(at_once.encode_response(receipt, []))
    assert at_once.receive(response, unexpected, unexpected) is None


def test_an_answer_that_does_not_begin_with_a_header_is_none() -> None:
    response = shard_pb2.PushAndPullResponse(pulled=[shard_pb2.PullResponse(chunk=shard_pb2.Chunk(data=b"abcd"))])
    with pytest.raises(StepdError, match="header"):
        at_once.receive(response, unexpected, unexpected)


def test_an_answer_that_ends_before_the_end_is_none() -> None:
    response = shard_pb2.PushAndPullResponse(pulled=[shard_pb2.PullResponse(header=shard_pb2.PullHeader())])
    with pytest.raises(StepdError, match="before its end"):
        at_once.receive(response, lambda _: None, lambda: receiver(np.zeros(1, np.int32)))


REFUSED: list[tuple[Callable[[], bytes], str]] = [
    (lambda: bytes(AT_ONCE_MESSAGE_BYTES_MAX + 1), f"up to {AT_ONCE_MESSAGE_BYTES_MAX} bytes"),
    (lambda: b"\xff" * 9, "do not parse"),
    (lambda: at_once.encode_request(push(run="other"), PULL), "'other'"),
    (lambda: at_once.encode_request([], PULL), "pull.run"),
    *[
        (
            lambda kind=kind: at_once.encode_request(push(), shard_pb2.PullRequest(run="run", **{kind: True})),
            "parameters",
        )
        for kind in ("shared", "state", "averaged")
    ],
]


@pytest.mark.parametrize(("raw", "text"), REFUSED)
def test_what_must_not_go_in_one_call_is_refused(raw: Callable[[], bytes], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        at_once.decode_request(raw())


def test_only_little_goes_in_one_call() -> None:
    at_once.check_size("push", AT_ONCE_BYTES_MAX // 8, 8)
    with pytest.raises(InvalidArgument, match=r"pull must be up to 65536 bytes, got 65544"):
        at_once.check_size("pull", AT_ONCE_BYTES_MAX // 8 + 1, 8)
