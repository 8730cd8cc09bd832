"""What has been gathered and reported: all that a decision to apply it takes, written down before the report.

Together with the accumulator it outlives the process. A decision can only name an attempt that every shard has
reported, and once there is one nobody gathers another attempt of the round; so a shard that starts again can carry out
any decision that it is told of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.lanes import Doubles
from stepd_server.shard.plan import Bools, Piece
from stepd_server.shard.sums import Shaping

# Numbers before the limits of groups: round, attempt, version of the layout, divisor.
_FIRST_LIMIT = 4


@dataclass(frozen=True)
class Gathered:
    """One attempt whose sum is whole in the accumulator.

    Attributes:
        id: round and attempt.
        shaping: what makes the sum a gradient.
        touched: by slice, whether anybody had a gradient for it.
    """

    id: tuple[int, int]
    shaping: Shaping
    touched: Bools


class GatheredFile:
    """Where it is written down; there is room for it from the beginning."""

    def __init__(self, piece: Piece, journal: Journal, numbers: Doubles, touched: Bools) -> None:
        """
        Args:
            piece: of the run.
            journal: of the run.
            numbers: a mapped array of `size(piece)`.
            touched: a mapped array with an element for each slice.
        """
        self._piece = piece
        self._journal = journal
        self._numbers = numbers
        self._touched = touched

    @staticmethod
    def size(piece: Piece) -> int:
        """How many numbers there are."""
        return _FIRST_LIMIT + len(piece.groups)

    def write(self, gathered: Gathered) -> None:
        """From here on it can be decided on."""
        (round_number, attempt), shaping = gathered.id, gathered.shaping
        numbers = [round_number, attempt, self._piece.version, shaping.divisor, *shaping.limits]
        self._journal.write(self._numbers, np.array(numbers, np.float64))
        self._journal.write(self._touched, gathered.touched)
        self._journal.store(Field.GATHERED, attempt + 1)

    def clear(self) -> None:
        """The accumulator is about to be used for something else."""
        self._journal.store(Field.GATHERED, 0)

    def read(self) -> Gathered | None:
        """What of the present round was gathered last, unless something else has been begun since."""
        if not self._journal[Field.GATHERED]:
            return None
        round_number, attempt, version, divisor, *limits = self._numbers.tolist()
        if (round_number, version) != (self._journal[Field.ROUND], self._piece.version):
            return None
        return Gathered((int(round_number), int(attempt)), Shaping(divisor, tuple(limits)), self._touched.copy())
