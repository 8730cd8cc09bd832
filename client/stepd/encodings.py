"""How float32 values travel in fewer bytes: rounded to 16 bits, scaled to 8, or only the largest of them.

An encoding works on one chunk at a time, and gives the same bytes for what it has decoded itself: so a contribution
that is sent again, after whatever failure, is the same contribution. Pure.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn

import numpy as np

from stepd import casts, wire
from stepd.casts import Half
from stepd.errors import InvalidArgument
from stepd.limits import CHUNK_BYTES_MAX
from stepd.settings import refuse
from stepd.v1 import shard_pb2

Array = np.ndarray[Any, np.dtype[Any]]

F4: Final = np.dtype("<f4")
_U4: Final = np.dtype("<u4")
_I1: Final = np.dtype(np.int8)
# Values that share a scale: a scale adds 1.6% to their bytes.
SCALED_TOGETHER: Final = 256
_INT8_MAX: Final = 127
# Below this a scale would lose bits of its own.
_SCALE_EXPONENT_MIN: Final = -126
# Every so many values are looked at to guess the size from which on values are among the largest.
_SAMPLE_STRIDE: Final = 16
_SAMPLE_MIN: Final = 4096

GRADIENTS: Final = '"float32", "bfloat16", "float16", "int8" or "topk:F" with 0 < F <= 1, such as "topk:0.01"'
PARAMETERS: Final = '"float32", "bfloat16" or "float16"'


class Encoding(ABC):
    """One way to write a chunk.

    Attributes:
        keeps_error: what it leaves out is worth adding to the next gradient.
        together: as many chunks of values as they are go in one message, so that it is not a small one.
    """

    keeps_error: ClassVar[bool] = False
    together: ClassVar[int] = 1

    @abstractmethod
    def encode(self, offset: int, values: Array) -> shard_pb2.EncodedChunk:
        """The message for values that begin at an offset."""

    def message(self, offset: int, values: Array) -> bytes:
        """The same as one message of a push or a pull, which have it in the same field."""
        return shard_pb2.PushRequest(encoded=self.encode(offset, values)).SerializeToString()

    def snap(self, values: Array) -> Array:
        """What arrives of values."""
        return decode(self.encode(0, values))


@dataclass(frozen=True)
class Rounded(Encoding):
    """Values rounded to a type of 16 bits, to nearest even. What is too large for it becomes infinite."""

    together: ClassVar[int] = 2
    kind: Half

    def encode(self, offset: int, values: Array) -> shard_pb2.EncodedChunk:
        chunk = shard_pb2.EncodedChunk(offset=offset, count=values.size)
        setattr(chunk, self.kind, casts.rounded(values, self.kind).tobytes())
        return chunk

    def message(self, offset: int, values: Array) -> bytes:
        # By hand: the generated class takes longer than the cast.
        halves = casts.rounded(values, self.kind)
        return wire.encode_halves(offset, values.size, self.kind, halves.view(np.uint8).data)


@dataclass(frozen=True)
class Scaled(Encoding):
    """Integers of 8 bits with a scale for every 256 of them.

    A scale is the least power of two that keeps its values within 127: multiplying by it is exact, and so values that
    were decoded are encoded to themselves.
    """

    keeps_error: ClassVar[bool] = True

    def encode(self, offset: int, values: Array) -> shard_pb2.EncodedChunk:
        count = values.size
        rows = -(-count // SCALED_TOGETHER)
        if count % SCALED_TOGETHER:
            values = np.concatenate([values, np.zeros(rows * SCALED_TOGETHER - count, F4)])
        table = values.reshape(rows, SCALED_TOGETHER)
        largest = np.maximum(table.max(axis=1), -table.min(axis=1))
        with np.errstate(invalid="ignore", over="ignore"):
            fraction, exponent = np.frexp(largest / np.float32(_INT8_MAX))
            exponent = np.maximum(exponent - (fraction == np.float32(0.5)), _SCALE_EXPONENT_MIN)
            scales = np.ldexp(np.float32(1), exponent)
            scales[largest == 0] = 0
            # Nobody can tell how large values are beside an infinity.
            scales[~np.isfinite(largest)] = np.nan
            inverse = np.where(scales > 0, np.ldexp(np.float32(1), -exponent), np.float32(0))
            scaled = table * inverse[:, None]
            scaled[np.isnan(scales)] = 1  # whatever: times NaN
        np.rint(scaled, out=scaled)
        np.clip(scaled, -_INT8_MAX, _INT8_MAX, out=scaled)
        numbers = scaled.astype(_I1).reshape(-1)[:count]
        scaled_values = shard_pb2.ScaledValues(scales=scales.astype(F4).tobytes(), values=numbers.tobytes())
        return shard_pb2.EncodedChunk(offset=offset, count=count, int8=scaled_values)


@dataclass(frozen=True)
class Largest(Encoding):
    """The largest values by magnitude of each chunk, as they are; the others are zero.

    Attributes:
        fraction: how many, of all.
    """

    keeps_error: ClassVar[bool] = True

    fraction: float

    def encode(self, offset: int, values: Array) -> shard_pb2.EncodedChunk:
        count = max(1, math.ceil(self.fraction * values.size))
        # Few enough of what has arrived before.
        places = np.flatnonzero(values) if np.count_nonzero(values) <= count else _largest(values, count)
        sparse = shard_pb2.SparseValues(places=places.astype(_U4).tobytes(), values=values[places].tobytes())
        return shard_pb2.EncodedChunk(offset=offset, count=values.size, sparse=sparse)


def _largest(values: Array, count: int) -> Array:
    """Places of the `count` values of the largest magnitude, ascending. What is no number counts as the largest."""
    sizes = np.abs(values)
    candidates = np.arange(values.size)
    sample = sizes[::_SAMPLE_STRIDE]
    wanted = 2 * -(-count // _SAMPLE_STRIDE) + 16
    if sample.size >= _SAMPLE_MIN and wanted < sample.size:
        # Few of all have to be ordered, if the guess is one that enough of them reach.
        guess = np.partition(sample, sample.size - wanted)[sample.size - wanted]
        likely = np.flatnonzero(~(sizes < guess))
        if likely.size >= count:
            candidates = likely
    if candidates.size > count:
        chosen = np.argpartition(sizes[candidates], candidates.size - count)[candidates.size - count :]
        candidates = np.sort(candidates[chosen])
    return candidates


_ROUNDED: Final[dict[str, Rounded]] = {kind: Rounded(kind) for kind in casts.DTYPES}


def of_gradients(name: str) -> Encoding | None:
    """The encoding of this name; None for "float32", which is none. InvalidArgument for what is no name."""
    match = re.fullmatch(r"topk:(\d*\.?\d+(?:[eE]-?\d+)?)", name)
    if match and 0 < float(match[1]) <= 1:
        return Largest(float(match[1]))
    if name == "int8":
        return Scaled()
    if name not in _ROUNDED and name != "float32":
        refuse("Wire", "gradients", name, GRADIENTS)
    return _ROUNDED.get(name)


def of_parameters(name: str) -> Encoding | None:
    """As of_gradients. Parameters are not differences that add up: what is left out would never come."""
    if name not in _ROUNDED and name != "float32":
        refuse("Wire", "parameters", name, PARAMETERS)
    return _ROUNDED.get(name)


def decode(chunk: shard_pb2.EncodedChunk) -> Array:
    """The values of a chunk, as float32; InvalidArgument (BAD_CHUNK) if they are not what it says."""
    held = chunk.WhichOneof("values")
    _check_count(chunk.count, held)
    match held:
        case "bfloat16" | "float16":
            return _widened(chunk.count, held, getattr(chunk, held))
        case "int8":
            return _decode_scaled(chunk)
        case _:
            return _decode_sparse(chunk)


def decoded(chunk: shard_pb2.EncodedChunk | wire.Halves) -> wire.Chunk:
    """The chunk as it would have come without an encoding."""
    values = casts.widened(checked(chunk).data, chunk.kind) if isinstance(chunk, wire.Halves) else decode(chunk)
    return wire.Chunk(chunk.offset, values.view(np.uint8).data)


def pulled(message: object) -> wire.Chunk | wire.Halves | None:
    """The chunk that a message of a pull is, ready to be written; None if it is another."""
    if isinstance(message, shard_pb2.EncodedChunk):
        return decoded(message)
    if isinstance(message, wire.Halves):
        return checked(message)
    return message if isinstance(message, wire.Chunk) else None


def checked(chunk: wire.Halves) -> wire.Halves:
    """The same; InvalidArgument (BAD_CHUNK) if it does not hold what it says."""
    _check_count(chunk.elements, chunk.kind)
    _check_size(chunk.kind, chunk.data.nbytes, chunk.elements * casts.DTYPES[chunk.kind].itemsize)
    return chunk


def _check_count(count: int, held: str | None) -> None:
    if not 0 < count * F4.itemsize <= CHUNK_BYTES_MAX or held is None:
        _bad(f"an encoded chunk must hold 1 to {CHUNK_BYTES_MAX // F4.itemsize} values, got {count} of {held}")


def _widened(count: int, kind: Half, data: bytes | memoryview) -> Array:
    _check_size(kind, len(data), count * casts.DTYPES[kind].itemsize)
    return casts.widened(data, kind)


def _decode_scaled(chunk: shard_pb2.EncodedChunk) -> Array:
    count, rows = chunk.count, -(-chunk.count // SCALED_TOGETHER)
    _check_size("int8.values", len(chunk.int8.values), count)
    _check_size("int8.scales", len(chunk.int8.scales), rows * F4.itemsize)
    values: Array = np.frombuffer(chunk.int8.values, _I1).astype(F4)
    scales = np.frombuffer(chunk.int8.scales, F4)
    whole = count // SCALED_TOGETHER
    table = values[: whole * SCALED_TOGETHER].reshape(whole, SCALED_TOGETHER)
    with np.errstate(invalid="ignore", over="ignore"):
        table *= scales[:whole, None]
        values[whole * SCALED_TOGETHER :] *= scales[-1]
    return values


def _decode_sparse(chunk: shard_pb2.EncodedChunk) -> Array:
    count, sparse = chunk.count, chunk.sparse
    _check_size("sparse.values", len(sparse.values), len(sparse.places))
    if len(sparse.places) % _U4.itemsize:
        _bad(
            f"an encoded chunk's sparse.places must be whole numbers of {_U4.itemsize} bytes, got {len(sparse.places)}"
        )
    places = np.frombuffer(sparse.places, _U4)
    if places.size and (int(places[-1]) >= count or not (places[1:] > places[:-1]).all()):
        _bad(f"an encoded chunk's sparse.places must ascend and lie below {count}")
    values: Array = np.zeros(count, F4)
    values[places] = np.frombuffer(sparse.values, F4)
    return values


def _check_size(field: str, given: int, expected: int) -> None:
    if given != expected:
        _bad(f"an encoded chunk's {field} must have {expected} bytes, got {given}", expected=expected, given=given)


def _bad(message: str, **details: object) -> NoReturn:
    raise InvalidArgument(message, reason="BAD_CHUNK", **details)
