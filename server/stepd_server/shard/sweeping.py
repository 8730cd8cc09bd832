"""How kernels go through many units at once, on every core, so that a death at any instruction can be gone on from.

Neighbouring units that kernels may update are cut into turns. A turn is one compiled call, made by one thread; several
turns are under way at a time, each with a word of its own in the journal. A kernel does a unit part by part: it copies
what a part is about to overwrite into a slot, notes that in the word, updates the part, and notes that. A part is so
small that it is on its way through the first-level cache anyway, and its elements are read once instead of twice. There
is a slot for each thread, and the word says which.

    word = slot * 2^56 + units of the turn that are done * 2^32 + KEPT_WHOLE + 2 * parts that are done + 1 while the
           slot holds what the next part overwrites

KEPT_WHOLE says that the undo slot holds all that is left of the unit, which NumPy is updating: for a process without a
compiler may have to go on where one with it has died. A turn whose word is 0 has not begun.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from stepd.limits import COMPUTE_THREADS_MAX
from stepd.rules import Reach
from stepd_server.shard.plan import Piece
from stepd_server.shard.undo import Unit

# Elements in a part of a unit: they and what is kept of them stay in the first-level cache.
PART_ELEMENTS: Final = 1024
# Elements in a turn: about a millisecond, in which a thread does not ask for the interpreter lock.
TURN_ELEMENTS: Final = 1 << 19
# Words in the journal. What a step has turns for beyond them is updated unit by unit.
TURNS_MAX: Final = 4096
# Smaller pieces have none.
ELEMENTS_MIN: Final = 1 << 14

_UNIT: Final = 1 << 32
_SLOT: Final = 1 << 56
_KEPT_WHOLE: Final = 1 << 31


class Standing(NamedTuple):
    """Where a turn stands.

    Attributes:
        slot: of the thread that has begun its present unit.
        units: that are done.
        parts: of the next one that are done.
        held: the thread's slot holds what the part after them overwrites.
        whole: the undo slot holds what is left of the unit.
    """

    slot: int = 0
    units: int = 0
    parts: int = 0
    held: bool = False
    whole: bool = False

    @property
    def word(self) -> int:
        return self.slot * _SLOT + self.units * _UNIT + _KEPT_WHOLE * self.whole + 2 * self.parts + self.held


def standing(word: int) -> Standing:
    """What a word says."""
    slot, left = divmod(word, _SLOT)
    units, left = divmod(left, _UNIT)
    whole, left = divmod(left, _KEPT_WHOLE)
    return Standing(slot, units, left // 2, bool(left % 2), bool(whole))


class Swept(NamedTuple):
    """A turn of a sweep.

    Attributes:
        word: number of its word.
        first: number of its first unit.
        units: one at least.
    """

    word: int
    first: int
    units: Sequence[Unit]

    @property
    def end(self) -> int:
        """Number of the unit after its last."""
        return self.first + len(self.units)


def sweeps_of(piece: Piece, units: Sequence[Unit]) -> list[list[Swept]]:
    """The stretches of units that kernels may update, each cut into turns: the same for everybody who has the units."""
    size, most = max(TURN_ELEMENTS, -(-2 * piece.size // TURNS_MAX)), turns_max(piece)
    sweeps: list[list[Swept]] = []
    word = 0
    for begin, stop in _stretches(piece, units):
        turns: list[Swept] = []
        first = begin
        while first < stop and word < most:
            end = first + 1
            while end < stop and units[end].stop - units[first].start <= size:
                end += 1
            turns.append(Swept(word, first, units[first:end]))
            word, first = word + 1, end
        if turns:
            sweeps.append(turns)
    return sweeps


def _stretches(piece: Piece, units: Sequence[Unit]) -> Iterator[tuple[int, int]]:
    whole = [group.rule.reach is Reach.WHOLE for group in piece.groups]
    first: int | None = None
    for number, unit in enumerate(units):
        fits = len(unit.spans) == 1 and not whole[unit.spans[0].group]
        if fits and first is None:
            first = number
        elif not fits and first is not None:
            yield first, number
            first = None
    if first is not None:
        yield first, len(units)


def turns_max(piece: Piece) -> int:
    """The most turns that the sweeps of a step have."""
    return min(len(piece.slices) + piece.size // piece.block, TURNS_MAX) if piece.size >= ELEMENTS_MIN else 0


def slots(piece: Piece) -> int:
    """How many threads may sweep at once."""
    return min(1 + piece.size // TURN_ELEMENTS, COMPUTE_THREADS_MAX) if piece.size >= ELEMENTS_MIN else 0


def slot_size(piece: Piece) -> int:
    """Elements of one thread's slot: what the largest part overwrites."""
    arrays = 1 + max((len(group.buffer_sizes) for group in piece.groups), default=0)
    return arrays * part_size(piece)


def part_size(piece: Piece) -> int:
    """Elements in a part."""
    return min(PART_ELEMENTS, piece.block)
