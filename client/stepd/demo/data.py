"""The 1,797 handwritten digits: loaded, split and dealt out to workers, always in the same way."""

from __future__ import annotations

import functools
import gzip
import zlib
from importlib import resources
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

Images: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Labels: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

PIXELS: Final = 64
CLASSES: Final = 10
# A pixel counts the dark points of a 4 x 4 field.
PIXEL_MAX: Final = 16
# One image in so many is held out.
HELD_OUT: Final = 5


class Examples(NamedTuple):
    """Images with the digits they show.

    Attributes:
        images: (n, 64), from 0 to 1.
        labels: (n,), from 0 to 9.
    """

    images: Images
    labels: Labels

    def __len__(self) -> int:  # of examples, not of fields
        return len(self.labels)

    def take(self, indices: Any) -> Examples:
        return Examples(self.images[indices], self.labels[indices])


class Digits(NamedTuple):
    """The two parts of the data."""

    train: Examples
    held_out: Examples


@functools.cache
def load() -> Digits:
    """Read the digits and split them.

    An image is held out by a checksum of its pixels: the split depends on no order and no generator, and two equal
    images never stand on both sides.
    """
    packed = resources.files(__package__).joinpath("digits.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").split()
    table = np.array([line.split(",") for line in lines], dtype=np.uint8)
    held_out = np.array([zlib.crc32(row[:PIXELS].tobytes()) % HELD_OUT == 0 for row in table])
    images = table[:, :PIXELS].astype(np.float32) / np.float32(PIXEL_MAX)
    everything = Examples(images, table[:, PIXELS].astype(np.int64))
    return Digits(train=everything.take(~held_out), held_out=everything.take(held_out))


def share(examples: Examples, rank: int, workers: int) -> Examples:
    """What one of several workers trains on: every `workers`-th example, so that shares differ by one at most."""
    return examples.take(slice(rank, None, workers))


def batch(examples: Examples, step: int, size: int, seed: int) -> Examples:
    """The examples of one step: `size` of them, each example once in a pass, and every pass in another order.

    A function of the step alone, so that a worker that was started again goes on with the same batches.
    """
    steps_per_pass = max(1, len(examples) // size)
    one_pass, place = divmod(step, steps_per_pass)
    order = np.random.default_rng((seed, one_pass)).permutation(len(examples))
    return examples.take(order[place * size : (place + 1) * size])
