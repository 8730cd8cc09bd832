"""Where a run stands on a shard: a few numbers in a mapped file, which the death of the process leaves as they are.

Everything that makes a step survive goes through here: `store` moves the run from one place to the next by one aligned
8-byte store, and `write` fills an array that a store then declares valid. Between the two lies only what changes arrays
in place: `Rule.update` and `Averaging.add`.

So these are the places where a test kills a process: in place of `store` and `write`, of the class or of one arena's
journal, it puts functions that copy the run's folder (mappings are shared: a copy of the files is what a new process
would find) before or after the call, or halfway through it, and raise; then it opens the copy. What the process goes on
to do with its own files, as it unwinds, does not reach the copy.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.int64]]


class Field(IntEnum):
    """Where each number stands; each is one aligned 8-byte store."""

    SEALED = 0  # 1 once the initial parameters are complete
    INTENT = 1  # rounds whose applying has begun: one more than ROUND while a step is under way
    ROUND = 2  # rounds finished
    STEP = 3  # steps applied
    AVERAGED = 4  # steps that have gone into the average


class Journal:
    """The numbers of one run."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def __getitem__(self, field: Field) -> int:
        return int(self._words[field])

    def store(self, field: Field, value: int) -> None:
        """Write one number."""
        self._words[field] = value

    def write(self, target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
        """Fill an array that counts for nothing until a store says so."""
        np.copyto(target, source)
