"""Where a run stands on a shard: a few numbers in a mapped file, which the death of the process leaves as they are.

Everything that makes a step survive goes through here: `store` moves the run from one place to the next by one aligned
8-byte store, and `write` fills an array that counts for nothing until a store says so. Between the two lies only what
changes arrays in place: `Rule.update`, `Averaging.add` and `Kernel.sweep`, which marks its parts by itself.
finishing.py has the order.

So these are the places where a test kills a process: in place of `store` and `write`, of the class or of one arena's
journal, it puts functions that copy the run's folder (mappings are shared: a copy of the files is what a new process
would find) before or after the call, or halfway through it, and raise; then it opens the copy. What the process goes on
to do with its own files, as it unwinds, does not reach the copy.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import numpy as np

Words = np.ndarray[Any, np.dtype[np.int64]]

# In place of PROGRESS: all units are done, and what they have counted is being copied.
COUNTING: Final = -1


class Field(IntEnum):
    """Where each number stands; each is one aligned 8-byte store."""

    SEALED = 0  # 1 once the initial parameters are complete
    INTENT = 1  # rounds that are decided, as far as is known here: one more than ROUND while a decision is carried out
    ROUND = 2  # rounds finished
    STEP = 3  # steps applied
    AVERAGED = 4  # steps that have gone into the average
    GATHERED = 5  # one more than the attempt whose sum is whole in the accumulator; 0: none
    # Of the step under way, if there is one; otherwise they mean nothing.
    PROGRESS = 6  # twice the units that are done, one more while the undo slot holds what the next one overwrites
    UNITS = 7  # a checksum of how it is cut into units
    AVERAGING = 8  # what AVERAGED will be


class Journal:
    """The numbers of one run."""

    def __init__(self, words: Words, sweeps: Words | None = None) -> None:
        """
        Args:
            words: by field.
            sweeps: by turn of a sweep: where it stands (sweeping.py). None if nothing is swept.
        """
        self._words = words
        self._sweeps = np.zeros(0, np.int64) if sweeps is None else sweeps

    def __getitem__(self, field: Field) -> int:
        return int(self._words[field])

    def store(self, field: Field, value: int) -> None:
        """Write one number."""
        self._words[field] = value

    def marked(self, turn: int) -> int:
        """Where a turn of a sweep stands."""
        return int(self._sweeps[turn])

    def mark(self, turn: int, value: int) -> None:
        """Write where a turn of a sweep stands."""
        self._sweeps[turn] = value

    def unmark(self) -> None:
        """Nothing is swept yet."""
        self._sweeps[:] = 0

    def word(self, turn: int) -> Words:
        """Where it is written, for a kernel that does so by itself."""
        return self._sweeps[turn : turn + 1]

    def write(self, target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]) -> None:
        """Fill an array that counts for nothing yet, or that can be filled again."""
        np.copyto(target, source)
