"""Encodings against their definitions in plain float64, and what a worker keeps of what they leave out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from stepd import encodings
from stepd.compression import Compression
from stepd.encodings import SCALED_TOGETHER, Encoding, decode
from stepd.errors import InvalidArgument
from stepd.policies import Wire
from stepd.transfer import Plan
from stepd.v1 import shard_pb2
from tests.unit.test_client_transfer import make_plan

F4 = np.float32
NAMES = ("bfloat16", "float16", "int8", "topk:0.01", "topk:0.3", "topk:1")
SIZES = (1, 2, 255, 256, 257, 5000, 100_000)


def of(name: str) -> Encoding:
    encoding = encodings.of_gradients(name)
    assert encoding is not None
    return encoding


def values_of(size: int, seed: int = 0, spread: float = 3) -> np.ndarray:
    """Of many magnitudes, with zeros."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size) * np.exp(spread * rng.standard_normal(size))
    values[rng.random(size) < 0.1] = 0
    return values.astype(F4)


def arrived(name: str, values: np.ndarray) -> np.ndarray:
    """After the wire."""
    raw = of(name).encode(7, values).SerializeToString()
    chunk = shard_pb2.EncodedChunk.FromString(raw)
    assert (chunk.offset, chunk.count) == (7, values.size)
    return decode(chunk)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_sixteen_bits_are_those_of_a_cast(name: str, dtype: Any, size: int) -> None:
    values = values_of(size, spread=1)
    np.testing.assert_array_equal(arrived(name, values), values.astype(dtype).astype(F4))


@pytest.mark.parametrize("size", SIZES)
def test_scaled_values_are_the_nearest_multiples_of_the_least_power_of_two(size: int) -> None:
    values = values_of(size)
    got = arrived("int8", values).astype(np.float64)
    for start in range(0, size, SCALED_TOGETHER):
        block = values[start : start + SCALED_TOGETHER].astype(np.float64)
        largest = np.abs(block).max()
        if not largest:
            assert not got[start : start + SCALED_TOGETHER].any()
            continue
        scale = 2.0 ** np.ceil(np.log2(largest / 127))
        np.testing.assert_array_equal(got[start : start + SCALED_TOGETHER], np.rint(block / scale) * scale)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.3, 1])
def test_the_largest_values_arrive_as_they_are(size: int, fraction: float) -> None:
    values = values_of(size)
    got = arrived(f"topk:{fraction}", values)
    count = min(max(1, int(np.ceil(fraction * size))), np.count_nonzero(values))
    kept = np.flatnonzero(got)
    assert kept.size == count
    np.testing.assert_array_equal(got[kept], values[kept])
    left = np.abs(np.delete(values, kept))
    assert not left.size or not count or left.max() <= np.abs(values[kept]).min()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_what_has_arrived_is_encoded_to_itself(name: str, size: int) -> None:
    """So a contribution that is sent again is the same."""
    for seed in range(5):
        once = of(name).snap(values_of(size, seed))
        np.testing.assert_array_equal(of(name).snap(once), once)
        assert of(name).encode(0, once) == of(name).encode(0, of(name).snap(once))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_arrives_as_no_number(name: str, value: float) -> None:
    """Wherever it stands: the shard has to see it."""
    for size in (1, 300, 100_000):
        values = values_of(size)
        values[size // 2] = value
        assert not np.isfinite(arrived(name, values)[size // 2])


@pytest.mark.parametrize("name", ["bfloat16", "int8", "topk:1"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-38, 3e38, -3e38, 127.0, 127.00001, 63.5])
def test_the_ends_of_the_range(name: str, value: float) -> None:
    got = arrived(name, np.full(3, value, F4))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, F4(value), rtol=1 / 127, atol=2.0**-126)


def test_a_float16_that_overflows_is_seen() -> None:
    assert np.isinf(arrived("float16", np.full(3, 7e4, F4))).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 3}, "None"),
        ({"count": 0, "bfloat16": b""}, "got 0"),
        ({"count": 1 << 20, "bfloat16": bytes(1 << 21)}, "got 1048576"),
        ({"count": 3, "bfloat16": bytes(5)}, "bfloat16 must have 6 bytes, got 5"),
        ({"count": 3, "float16": bytes(8)}, "float16 must have 6 bytes, got 8"),
        ({"count": 3, "int8": {"scales": bytes(4), "values": bytes(2)}}, "int8.values must have 3 bytes, got 2"),
        ({"count": 300, "int8": {"scales": bytes(4), "values": bytes(300)}}, "int8.scales must have 8 bytes, got 4"),
        ({"count": 3, "sparse": {"places": bytes(4), "values": bytes(8)}}, "sparse.values must have 4 bytes, got 8"),
        ({"count": 3, "sparse": {"places": bytes(3), "values": bytes(3)}}, "sparse.places"),
        ({"count": 3, "sparse": {"places": b"\3\0\0\0", "values": bytes(4)}}, "below 3"),
        ({"count": 3, "sparse": {"places": b"\1\0\0\0\1\0\0\0", "values": bytes(8)}}, "ascend"),
    ],
)
def test_a_chunk_that_is_not_what_it_says_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        decode(shard_pb2.EncodedChunk(**fields))
    assert caught.value.reason == "BAD_CHUNK"


@pytest.mark.parametrize(
    "name", ["", "float64", "int4", "topk", "topk:", "topk:0", "topk:1.5", "topk:x", "topk:1e5", "F"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"Wire: gradients must be .*topk:0\.01"):
        Wire(gradients=name)
    with pytest.raises(InvalidArgument, match="Wire: parameters must be"):
        Wire(parameters=name)


def test_parameters_are_only_rounded() -> None:
    for name in ("int8", "topk:0.5"):
        with pytest.raises(InvalidArgument, match="Wire: parameters"):
            Wire(parameters=name)
    assert Wire("topk:1e-3", "bfloat16").gradients == "topk:1e-3"


# --- What is left out -------------------------------------------------------------------------------------------------


SHAPES: tuple[tuple[int, ...], ...] = ((300, 5000), (11,), ())


def plan() -> Plan:
    return make_plan(SHAPES, 2, block=65536)


def gradients(seed: int) -> dict[int, np.ndarray]:
    return {id_: values_of(max(1, int(np.prod(shape))), seed + id_).reshape(shape) for id_, shape in enumerate(SHAPES)}


@pytest.mark.parametrize("name", ["int8", "topk:0.05"])
def test_all_that_was_given_arrives_or_is_owed(name: str) -> None:
    compression = Compression(of(name))
    given = {id_: np.zeros(array.shape) for id_, array in gradients(0).items()}
    came = {id_: np.zeros(array.shape) for id_, array in gradients(0).items()}
    for step in range(10):
        grads = gradients(step)
        before = {id_: array.copy() for id_, array in grads.items()}
        compressed = compression.compress(plan(), grads)
        for id_, array in grads.items():
            np.testing.assert_array_equal(array, before[id_])  # the caller's
            given[id_] += array
            came[id_] += compressed.arrays[id_]
        compressed.counts()
    for id_, total in given.items():
        np.testing.assert_allclose(came[id_] + compression.error[id_], total, rtol=0, atol=1e-4 * np.abs(total).max())
    assert any(error.any() for error in compression.error.values())


@pytest.mark.parametrize("name", ["int8", "topk:0.05"])
def test_what_is_sent_is_what_was_snapped(name: str) -> None:
    """Encoding the arrays chunk by chunk, as streams do, changes nothing in them."""
    compressed = Compression(of(name)).compress(plan(), gradients(0))
    views = compressed.arrays
    for push in plan().pushes(views):
        for plain, raw in zip(push.messages(views), push.messages(views, of(name)), strict=True):
            encoded = shard_pb2.PushRequest.FromString(raw).encoded
            chunk = shard_pb2.PushRequest.FromString(plain).chunk
            assert encoded.offset == chunk.offset
            np.testing.assert_array_equal(decode(encoded), np.frombuffer(chunk.data, F4))


def test_a_contribution_that_does_not_count_leaves_the_debt_as_it_was() -> None:
    compression = Compression(of("topk:0.05"))
    compression.compress(plan(), gradients(0)).counts()
    owed = {id_: array.copy() for id_, array in compression.error.items()}
    compression.compress(plan(), gradients(1))
    for id_, array in owed.items():
        np.testing.assert_array_equal(compression.error[id_], array)


def test_a_gradient_that_is_not_finite_is_not_owed() -> None:
    compression = Compression(of("int8"))
    compression.compress(plan(), gradients(0)).counts()
    grads = gradients(1)
    grads[0][3, 4] = np.nan
    compressed = compression.compress(plan(), grads)
    assert np.isnan(compressed.arrays[0][3, 4])
    compressed.counts()
    assert all(np.isfinite(array).all() for array in compression.error.values())


def test_parameters_that_are_left_out_keep_their_debt() -> None:
    compression = Compression(of("topk:0.05"))
    compression.compress(plan(), gradients(0)).counts()
    owed = compression.error[0].copy()
    compression.compress(plan(), {1: gradients(1)[1]}).counts()
    np.testing.assert_array_equal(compression.error[0], owed)
