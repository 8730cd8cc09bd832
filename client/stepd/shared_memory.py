"""A worker's memory for gradients that shards on the same host read where it lies."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np

from stepd.buffers import Array
from stepd.definitions import DType, ParameterSpec
from stepd.limits import SHARED_BYTES_AT_ONCE
from stepd.transfer import Piece, ShardPush, bytes_of

# Small gradients are joined before they are copied.
_MANY: Final = 8

# Of the secret by which a shard recognises the memory.
SECRET_BYTES: Final = 32


class SharedChunk(NamedTuple):
    """Consecutive elements of a contribution that lie in shared memory.

    Attributes:
        offset: of the first in the contribution's ranges laid end to end.
        elements: how many.
        at: where the first lies, in elements from the beginning of the memory.
    """

    offset: int
    elements: int
    at: int


def can_share() -> bool:
    """Whether this system has files in memory that cannot be made smaller under their readers."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class Memory:
    """A file in memory that belongs to this process and ends with it: there is nothing to be left behind.

    It has room for every parameter twice: once for arrays that are lent out for gradients to be written to
    (`gradients`), once for gradients that come from elsewhere. What is not used takes no memory.

    Attributes:
        version: of the layout that the parameters are of.
        descriptor: of the file.
        start: where the elements begin, in bytes.
        count: of elements.
    """

    def __init__(self, parameters: Sequence[ParameterSpec], dtype: DType, shards: int, version: int) -> None:
        self.version = version
        self._parameters = tuple(parameters)
        self._dtype = dtype
        self._lent = list(accumulate((p.size for p in parameters), initial=0))
        page = mmap.PAGESIZE
        # Both halves begin at a page, so that the one that is not used takes no memory.
        half = -(-self._lent[-1] * dtype.itemsize // page) * page // dtype.itemsize
        self._copied = [half + start for start in self._lent]
        self.start = -(-shards * SECRET_BYTES // page) * page
        self.count = 2 * half
        length = self.start + self.count * dtype.itemsize
        self.descriptor = os.memfd_create("stepd-gradients", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, length)
            # A reader of a file that has become smaller is killed.
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._mapping = mmap.mmap(self.descriptor, length)
        except BaseException:
            os.close(self.descriptor)
            raise
        whole: Any = np.frombuffer(self._mapping, np.uint8)
        self._bytes = whole[self.start :]
        self._memory = memoryview(self._bytes)

    def close(self) -> None:
        """Let nobody find it any more. The memory is free when its arrays and its readers are gone."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def write_secret(self, shard: int, secret: bytes) -> int:
        """Write a shard's secret; where it stands, in bytes of the file."""
        at = shard * SECRET_BYTES
        self._mapping[at : at + SECRET_BYTES] = secret[:SECRET_BYTES].ljust(SECRET_BYTES, b"\0")
        return at

    def gradients(self) -> dict[str, Array]:
        """Arrays by parameter, zeros at first. A gradient that is computed into them is not copied."""
        return {
            spec.name: self._bytes[start * self._dtype.itemsize : (start + spec.size) * self._dtype.itemsize]
            .view(self._dtype)
            .reshape(spec.shape)
            for spec, start in zip(self._parameters, self._lent, strict=False)
        }

    def place(self, push: ShardPush, arrays: Mapping[int, Array]) -> Iterator[SharedChunk]:
        """Copy what of a contribution does not lie here already, and say where it lies, in order and as it is there."""
        in_place = self._in_place(arrays)
        offset = elements = at = copied = 0
        for planned in push.chunks:
            for begin, count, parts in self._stretches(planned.pieces, arrays, in_place):
                copied += self._write(begin, parts)
                if elements and at + elements == begin:
                    elements += count
                else:
                    if elements:
                        yield SharedChunk(offset, elements, at)
                    offset, elements, at = offset + elements, count, begin
            if elements and copied >= SHARED_BYTES_AT_ONCE:
                yield SharedChunk(offset, elements, at)
                offset, elements, copied = offset + elements, 0, 0
        if elements:
            yield SharedChunk(offset, elements, at)

    def _stretches(
        self, pieces: Sequence[Piece], arrays: Mapping[int, Array], in_place: frozenset[int]
    ) -> Iterator[tuple[int, int, list[Any]]]:
        """Pieces that are neighbours here: where they begin, how many elements, and what is to be copied there."""
        itemsize, begin, stop, lying = self._dtype.itemsize, 0, 0, False
        parts: list[Any] = []
        for id_, part in pieces:
            array = arrays[id_] if part is None else bytes_of(arrays[id_])[part]
            lies = id_ in in_place
            start = (self._lent if lies else self._copied)[id_] + (0 if part is None else part.start // itemsize)
            if start != stop or lies != lying:
                if stop > begin:
                    yield begin, stop - begin, parts
                begin = stop = start
                lying, parts = lies, []
            stop += array.nbytes // itemsize
            if not lies:
                parts.append(array)
        if stop > begin:
            yield begin, stop - begin, parts

    def _write(self, begin: int, parts: Sequence[Any]) -> int:
        """Copy arrays, or bytes of them, to neighbouring places; give how many bytes."""
        at = first = begin * self._dtype.itemsize
        # A memoryview of bytes copies at once, but takes a microsecond to begin.
        for part in parts if len(parts) < _MANY else (b"".join(parts),):
            view = bytes_of(part) if isinstance(part, np.ndarray) else part
            self._memory[at : at + len(view)] = view
            at += len(view)
        return at - first

    def _in_place(self, arrays: Mapping[int, Array]) -> frozenset[int]:
        """The gradients that lie in the arrays that were lent for them."""
        first, itemsize = _address(self._bytes), self._dtype.itemsize
        return frozenset(
            id_
            for id_, array in arrays.items()
            # What owns its memory does not lie here. It is asked first because there may be thousands.
            if array.base is not None and _address(array) == first + self._lent[id_] * itemsize
        )


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
