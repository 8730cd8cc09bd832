"""What a worker keeps of gradients that an encoding leaves something out of: the error, added to the next gradient.

So nothing is lost, only late. The error of a contribution is taken in when it counts; when it does not, what it held of
earlier errors is still owed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from stepd.buffers import Array, Buffers, copy_into
from stepd.encodings import Encoding
from stepd.transfer import Plan, PushChunk


class Compressed(NamedTuple):
    """A gradient as it arrives.

    Attributes:
        arrays: by parameter, in memory that is not used again while anybody refers to it.
        counts: to be called when the contribution counts.
    """

    arrays: dict[int, Array]
    counts: Callable[[], None]


class Compression:
    """Of one worker.

    Attributes:
        error: by parameter, what is owed.
    """

    def __init__(self, encoding: Encoding, error: Mapping[int, Array] | None = None) -> None:
        self._encoding = encoding
        # Of the contribution that is under way and the next; the error that is owed and the next.
        self._sent, self._left = Buffers(2), Buffers(2)
        self.error: dict[int, Array] = dict(error or {})

    def compress(self, plan: Plan, grads: Mapping[int, Array]) -> Compressed:
        """What arrives of gradients and of what is owed, if the layout's chunks are encoded."""
        arrays = copy_into(self._sent, grads)
        with np.errstate(all="ignore"):
            for id_, array in arrays.items():
                if id_ in self.error:
                    np.add(array, self.error[id_], out=array)
            left = copy_into(self._left, arrays)
            for push in plan.pushes(arrays, self._encoding):
                for chunk in push.chunks:
                    self._snap(chunk, arrays)
            finite = True
            for id_, error in left.items():
                np.subtract(error, arrays[id_], out=error)
                finite = finite and bool(np.isfinite(error).all())
        # A gradient that is not finite is refused, or its step skipped; it must not come back with every one after it.
        return Compressed(arrays, lambda: self.error.update(left) if finite else None)

    def _snap(self, chunk: PushChunk, arrays: Mapping[int, Array]) -> None:
        """Put in the place of a chunk's values what arrives of them."""
        parts: list[Array] = []
        for id_, part in chunk.pieces:
            flat = arrays[id_].reshape(-1)
            size = flat.dtype.itemsize
            parts.append(flat if part is None else flat[part.start // size : part.stop // size])
        arrived = self._encoding.snap(parts[0] if len(parts) == 1 else np.concatenate(parts))
        at = 0
        for values in parts:
            values[...] = arrived[at : at + values.size]
            at += values.size
