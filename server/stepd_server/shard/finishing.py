"""Carrying a decision out so that the death of the process, at any instruction, leaves a step that can be finished.

The order of the stores, of a step that is applied:

    begin   the decision is written down, and what counts and scalars will be is prepared
            INTENT = round + 1: from here on the step is carried out, by this process or the next
    units   each: what it overwrites is copied into the undo slot; PROGRESS odd; the rule updates it in place; PROGRESS
            even. After a death with PROGRESS odd the slot is copied back, and the unit is done again.
            With a kernel, for each part: a copy into the slot; PART odd; the update; PART even; at last PROGRESS even.
            After a death with PART odd the slot is copied back, and the unit goes on from that part
    end     PROGRESS = COUNTING; counts and scalars are copied, as often as need be; STEP; ROUND = INTENT

A round that is skipped has no units. Nothing that the units read changes before the end: neither the accumulator, nor
the counts, nor the scalars; so a unit that is done again has the same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from stepd.errors import FailedPrecondition, InvalidArgument
from stepd.rules import Reach
from stepd.rules.base import Array
from stepd.v1 import round_pb2
from stepd_server.kernels.compiled import Parts
from stepd_server.shard.applying import Step
from stepd_server.shard.arena import Arena
from stepd_server.shard.gathered import Gathered
from stepd_server.shard.journal import COUNTING, Field
from stepd_server.shard.plan import Span
from stepd_server.shard.scratch import Scratch
from stepd_server.shard.undo import Unit, checksum, keep, part_size, put_back, rest, standing, units_of

log = logging.getLogger(__name__)

# Between two pauses: about a chunk of a pull, and under a millisecond of work.
_UNITS_AT_ONCE: Final = 4
_SPANS_AT_ONCE: Final = 16
# Rules that see a tensor whole may multiply matrices: with more elements than this, Muon takes over a millisecond.
_WHOLE_ELEMENTS_AT_ONCE: Final = 64 * 64


class Turn(NamedTuple):
    """Units between two pauses.

    Attributes:
        first: number of the first.
        units: one at least.
        final: up to which element parameters are final when it is done.
        long: it may take far longer than a turn of the event loop should.
    """

    first: int
    units: Sequence[Unit]
    final: int
    long: bool


class Finishing:
    """One decision on its way into the arrays."""

    def __init__(
        self,
        arena: Arena,
        decision: round_pb2.Decision,
        gathered: Gathered | None,
        scratch: Scratch,
        spans: Sequence[Span] | None = None,
    ) -> None:
        """
        Args:
            arena: of the run; changed only from `begin` on.
            decision: of the present round.
            gathered: what it decides on; None if it does not apply it.
            scratch: of the run.
            spans: of what is touched, if somebody knows them already.
        """
        self._arena = arena
        self._journal = arena.journal
        self._decision = decision
        self._gathered = gathered
        self._step: Step | None = None
        self._units: list[Unit] = []
        # Of units that are what is left of them: elements in each part of the whole.
        self._part_sizes: dict[int, int] = {}
        counting = arena.unfinished and self._journal[Field.PROGRESS] == COUNTING
        if gathered is not None and not counting:
            self._step = Step(arena, gathered.shaping, decision, scratch)
            if spans is None:
                spans = arena.piece.spans(gathered.touched, arena.updates)
            self._step.check(spans)
            self._units = units_of(arena.piece, spans, self._step.averaged_alone(gathered.touched))

    def begin(self) -> None:
        """Write down that, and how, it is carried out. Fails at most before that is done."""
        arena, journal = self._arena, self._journal
        arena.remembering.write(self._decision)
        if self._gathered is not None:
            assert self._step is not None
            journal.write(arena.next_updates, arena.updates + self._gathered.touched)
            journal.write(arena.next_scalars, arena.flat_scalars)
            journal.store(Field.UNITS, checksum(self._units))
            journal.store(Field.AVERAGING, arena.averaged_steps + self._step.averages)
            journal.store(Field.PROGRESS, 0)
            journal.store(Field.PART, 0)
        journal.store(Field.INTENT, arena.round + 1)

    def turns(self) -> Iterator[Turn]:
        """What is left to be done, in order; each is carried out before the next is asked for."""
        if self._step is None:
            return
        if self._journal[Field.UNITS] != checksum(self._units):
            raise FailedPrecondition("the step was begun by another version of this program, which cuts it otherwise")
        done = self._begin_again()
        few: list[Unit] = []
        for at in range(done, len(self._units)):
            long = self._is_long(self._units[at])
            if few and (long or len(few) == _UNITS_AT_ONCE or sum(len(u.spans) for u in few) >= _SPANS_AT_ONCE):
                yield self._turn(at, few)
                few = []
            few.append(self._units[at])
            if long:
                yield self._turn(at + 1, few, long=True)
                few = []
        if few:
            yield self._turn(len(self._units), few)

    def _begin_again(self) -> int:
        """Undo what is half done; give how many units are done. The next one may be what is left of it."""
        journal, slot = self._journal, self._arena.undo
        number, half = divmod(journal[Field.PROGRESS], 2)
        if number == len(self._units):
            return number
        unit, parts = self._units[number], standing(journal[Field.PART], number)
        if parts.done or parts.held:
            size = self._part_sizes[number] = part_size(unit)
            unit = self._units[number] = rest(unit, parts.done * size)
            if parts.held:
                assert self._step is not None
                for row, array in enumerate(self._step.overwritten(unit.spans[0])):
                    part = array[:size]
                    journal.write(part, slot[row * size : row * size + part.size])
                journal.store(Field.PART, parts.word)
        if half:
            put_back(journal, slot, self._overwritten(unit))
            journal.store(Field.PROGRESS, 2 * number)
        return number

    def carry_out(self, turn: Turn) -> None:
        """Do a turn's units, or break off where it can be gone on from."""
        assert self._step is not None
        for number, unit in enumerate(turn.units, turn.first):
            if not self._by_parts(number, unit):
                keep(self._journal, self._arena.undo, self._overwritten(unit))
                self._journal.store(Field.PROGRESS, 2 * number + 1)
                if unit.spans:
                    self._step.update(unit.spans)
                else:
                    self._step.average(unit.start, unit.stop)
            self._journal.store(Field.PROGRESS, 2 * number + 2)

    def _by_parts(self, number: int, unit: Unit) -> bool:
        """Whether a kernel has done the unit, in parts."""
        if len(unit.spans) != 1:
            return False
        assert self._step is not None
        (span,) = unit.spans
        if unit.start == unit.stop:
            # It died after the last part.
            self._step.advance(span)
            return True
        size = self._part_sizes.get(number) or part_size(unit)
        begin = standing(self._journal[Field.PART], number).word
        parts = Parts(size, self._journal.word(Field.PART), begin, self._arena.undo)
        return self._step.update_by_parts(span, parts)

    def end(self) -> None:
        """All turns are done: the round is over."""
        arena, journal = self._arena, self._journal
        if self._gathered is not None:
            journal.store(Field.PROGRESS, COUNTING)
            journal.write(arena.updates, arena.next_updates)
            journal.write(arena.flat_scalars, arena.next_scalars)
            journal.store(Field.AVERAGED, journal[Field.AVERAGING])
        journal.store(Field.STEP, self._decision.step)
        journal.store(Field.ROUND, journal[Field.INTENT])

    def _overwritten(self, unit: Unit) -> list[Array]:
        assert self._step is not None
        arena, changed = self._arena, list[Array]()
        if unit.spans:
            first, last = unit.spans[0], unit.spans[-1]
            places = arena.piece.groups[first.group].stretches(first, last)
            changed.append(arena.parameters[unit.start : unit.stop])
            changed += [buffer[place] for buffer, place in zip(arena.buffers[first.group], places, strict=True)]
        if self._step.averages:
            assert arena.averaged is not None
            changed.append(arena.averaged[unit.start : unit.stop])
        return changed

    def _is_long(self, unit: Unit) -> bool:
        if not unit.spans or unit.stop - unit.start <= _WHOLE_ELEMENTS_AT_ONCE:
            return False
        return self._arena.piece.groups[unit.spans[0].group].rule.reach is Reach.WHOLE

    def _turn(self, stop: int, units: Sequence[Unit], *, long: bool = False) -> Turn:
        last = stop == len(self._units) or not self._units[stop].spans
        return Turn(stop - len(units), units, self._arena.piece.size if last else units[-1].stop, long)


def resume(arena: Arena, scratch: Scratch) -> None:
    """Finish what an earlier process has begun."""
    if not arena.unfinished:
        return
    decision = arena.remembering.read()
    assert decision is not None
    gathered = gathered_for(arena, decision)
    finishing = Finishing(arena, decision, gathered, scratch)
    for turn in finishing.turns():
        finishing.carry_out(turn)
    finishing.end()
    log.info("run %r: finished step %d, in which the shard died", arena.piece.spec.name, arena.step)


def gathered_for(arena: Arena, decision: round_pb2.Decision) -> Gathered | None:
    """What a decision applies, None if nothing.

    Raises:
        FailedPrecondition: it is not here.
        InvalidArgument: the rates are not those of the groups.
    """
    if decision.outcome != round_pb2.OUTCOME_APPLIED:
        return None
    gathered, id = arena.gathered.read(), (decision.id.round, decision.id.attempt)
    if gathered is None or gathered.id != id:
        raise FailedPrecondition(
            f"run {arena.piece.spec.name!r}: told to finish round {id[0]} attempt {id[1]}, but here "
            f"{gathered.id if gathered else f'nothing of round {arena.round}'} is gathered"
        )
    expected, given = len(arena.piece.groups), len(decision.groups)
    if given != expected:
        raise InvalidArgument(
            f"run {arena.piece.spec.name!r}: a decision has rates of its {expected} groups, got {given}",
            expected=expected,
            given=given,
        )
    return gathered
