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
from stepd.transfer import ShardPush, bytes_of

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

    def place(self, push: ShardPush, views: Mapping[int, Array]) -> Iterator[SharedChunk]:
        """Copy what of a contribution does not lie here already, and say where it lies, in order and as it is there."""
        itemsize = self._dtype.itemsize
        # Copied without the interpreter's help from element to element: a memoryview of bytes does it at once.
        memory = memoryview(self._bytes)
        starts = {id_: self._starts(id_, view) for id_, view in views.items()}
        chunk: SharedChunk | None = None
        copied = 0
        for planned in push.chunks:
            offset = planned.offset
            for id_, part in planned.pieces:
                view = bytes_of(views[id_])[part or slice(None)]
                in_place, start = starts[id_]
                at = start + (part.start // itemsize if part is not None else 0)
                if not in_place:
                    memory[at * itemsize : at * itemsize + view.nbytes] = view
                    copied += view.nbytes
                count = view.nbytes // itemsize
                if chunk is not None and chunk.at + chunk.elements == at:
                    chunk = chunk._replace(elements=chunk.elements + count)
                else:
                    if chunk is not None:
                        yield chunk
                    chunk = SharedChunk(offset, count, at)
                offset += count
            if chunk is not None and copied >= SHARED_BYTES_AT_ONCE:
                yield chunk
                chunk, copied = None, 0
        if chunk is not None:
            yield chunk

    def _starts(self, id_: int, view: Array) -> tuple[bool, int]:
        """Whether a gradient lies in the array that was lent for it, and where it is to lie."""
        address = _address(view)
        in_place = address == _address(self._bytes) + self._lent[id_] * self._dtype.itemsize
        return in_place, self._lent[id_] if in_place else self._copied[id_]


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
