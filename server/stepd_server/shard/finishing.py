"""Carrying a decision out so that the death of the process, at any instruction, leaves a step that can be finished.

The order of the stores, of a step that is applied:

    begin   the decision is written down, and what counts and scalars will be is prepared; no turn of a sweep has begun
            INTENT = round + 1: from here on the step is carried out, by this process or the next
    units   each: what it overwrites is copied into the undo slot; PROGRESS odd; the rule updates it in place; PROGRESS
            even. After a death with PROGRESS odd the slot is copied back, and the unit is done again.
            With kernels, many at once, each turn with a word and a slot: a part is copied into the slot; word odd; the
            update; word even; at last, when all turns of the sweep are done, PROGRESS even. After a death with a word
            odd the slot is copied back, and the turn goes on from that part
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
from stepd_server.kernels.compiled import Kernel, Words
from stepd_server.shard.applying import Step, quiet
from stepd_server.shard.arena import Arena
from stepd_server.shard.gathered import Gathered
from stepd_server.shard.journal import COUNTING, Field
from stepd_server.shard.plan import Span
from stepd_server.shard.scratch import Scratch
from stepd_server.shard.sweeping import Standing, Swept, part_size, slot_size, slots, standing, sweeps_of
from stepd_server.shard.undo import Unit, checksum, keep, put_back, rest, units_of

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


class Sweep(NamedTuple):
    """Units that kernels may go through on several threads at once.

    Attributes:
        turns: that are left, in order.
        finals: by turn: up to which element parameters are final when it and those before it are done.
    """

    turns: Sequence[Swept]
    finals: Sequence[int]

    @property
    def elements(self) -> int:
        return self.turns[-1].units[-1].stop - self.turns[0].units[0].start


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
        self._sweeps: list[list[Swept]] = []
        self._part = part_size(arena.piece)
        counting = arena.unfinished and self._journal[Field.PROGRESS] == COUNTING
        if gathered is not None and not counting:
            self._step = Step(arena, gathered.shaping, decision, scratch)
            if spans is None:
                spans = arena.piece.spans(gathered.touched, arena.updates)
            self._step.check(spans)
            self._units = units_of(arena.piece, spans, self._step.averaged_alone(gathered.touched))
            # Who died may have had a compiler, whether or not there is one here.
            if self._step.compiles or arena.unfinished:
                self._sweeps = sweeps_of(arena.piece, self._units)

    @property
    def slots(self) -> int:
        """How many turns of a sweep may be under way at once."""
        return slots(self._arena.piece)

    def begin(self) -> None:
        """Write down that, and how, it is carried out. Fails at most before that is done."""
        arena, journal = self._arena, self._journal
        arena.remembering.write(self._decision)
        if self._gathered is not None:
            assert self._step is not None
            journal.write(arena.next_updates, arena.updates + self._gathered.touched)
            journal.write(arena.next_scalars, arena.flat_scalars)
            self._step.advance([span for unit in self._units for span in unit.spans])
            journal.store(Field.UNITS, checksum(self._units))
            journal.store(Field.AVERAGING, arena.averaged_steps + self._step.averages)
            journal.store(Field.PROGRESS, 0)
            journal.unmark()
        journal.store(Field.INTENT, arena.round + 1)

    def turns(self) -> Iterator[Turn | Sweep]:
        """What is left to be done, in order; each is carried out before the next is asked for."""
        if self._step is None:
            return
        if self._journal[Field.UNITS] != checksum(self._units):
            raise FailedPrecondition("the step was begun by another version of this program, which cuts it otherwise")
        at = self._begin_again()
        for turns in self._sweeps:
            yield from self._plain_turns(at, turns[0].first)
            left = [turn for turn in turns if turn.end > at]
            if left:
                yield Sweep(left, [self._final(turn.end) for turn in left])
            at = max(at, turns[-1].end)
        yield from self._plain_turns(at, len(self._units))

    def _plain_turns(self, first: int, stop: int) -> Iterator[Turn]:
        few: list[Unit] = []
        for at in range(first, stop):
            long = self._is_long(self._units[at])
            if few and (long or len(few) == _UNITS_AT_ONCE or sum(len(u.spans) for u in few) >= _SPANS_AT_ONCE):
                yield self._turn(at, few)
                few = []
            few.append(self._units[at])
            if long:
                yield self._turn(at + 1, few, long=True)
                few = []
        if few:
            yield self._turn(stop, few)

    def _begin_again(self) -> int:
        """Undo what is half done; give how many units are done, but for those of turns that say so themselves."""
        journal, slot = self._journal, self._arena.undo
        number, half = divmod(journal[Field.PROGRESS], 2)
        if half:
            put_back(journal, slot, self._overwritten(self._units[number]))
            journal.store(Field.PROGRESS, 2 * number)
        for turn in (turn for turns in self._sweeps for turn in turns if turn.end > number):
            now = standing(journal.marked(turn.word))
            if now.held or now.whole:
                left = rest(turn.units[now.units], now.parts * self._part)
                if now.held:
                    self._put_part_back(left, now.slot)
                else:
                    put_back(journal, slot, self._overwritten(left))
                now = now._replace(held=False, whole=False)
                journal.mark(turn.word, now.word)
            if now.units < number - turn.first:
                # Somebody without a compiler has come so far.
                journal.mark(turn.word, Standing(units=number - turn.first).word)
        return number

    def _put_part_back(self, unit: Unit, slot: int) -> None:
        assert self._step is not None
        begin = slot * slot_size(self._arena.piece)
        for row, array in enumerate(self._step.overwritten(unit.spans[0])):
            part, at = array[: self._part], begin + row * self._part
            self._journal.write(part, self._arena.slots[at : at + part.size])

    def carry_out(self, turn: Turn) -> None:
        """Do a turn's units, or break off where it can be gone on from."""
        assert self._step is not None
        with quiet():
            for number, unit in enumerate(turn.units, turn.first):
                keep(self._journal, self._arena.undo, self._overwritten(unit))
                self._journal.store(Field.PROGRESS, 2 * number + 1)
                if unit.spans:
                    self._step.update(unit.spans)
                else:
                    self._step.average(unit.start, unit.stop)
                self._journal.store(Field.PROGRESS, 2 * number + 2)

    def calls(self, turn: Swept, slot: int = 0) -> list[tuple[Kernel, Words]] | None:
        """The calls of kernels that do what is left of a turn of a sweep; None if there are not kernels for all of it.

        Args:
            turn: of a sweep.
            slot: of the thread that is to make them, which nobody else has.
        """
        assert self._step is not None
        left = self._left(turn)
        return self._step.sweep([(unit.spans[0], now._replace(slot=slot).word) for now, unit in left])

    def run(self, turn: Swept, calls: Sequence[tuple[Kernel, Words]], slot: int = 0) -> None:
        """Make them. In any thread, while others are made of other turns with other slots."""
        size = slot_size(self._arena.piece)
        for kernel, rows in calls:
            kernel.sweep(rows, self._part, self._journal.word(turn.word), self._arena.slots[slot * size :])

    def carry_out_swept(self, turn: Swept) -> None:
        """Do what is left of a turn of a sweep, by kernels or without. No other may be under way."""
        calls = self.calls(turn)
        if calls is not None:
            self.run(turn, calls)
            return
        assert self._step is not None
        with quiet():
            for now, unit in self._left(turn):
                keep(self._journal, self._arena.undo, self._overwritten(unit))
                self._journal.mark(turn.word, now._replace(whole=True).word)
                self._step.update(unit.spans)
                self._journal.mark(turn.word, Standing(units=now.units + 1).word)

    def swept(self, sweep: Sweep) -> None:
        """All turns of a sweep are done."""
        self._journal.store(Field.PROGRESS, 2 * sweep.turns[-1].end)

    def _left(self, turn: Swept) -> list[tuple[Standing, Unit]]:
        """What is left of the units of a turn, each with where the turn stands before it."""
        begun = standing(self._journal.marked(turn.word))
        left = [(Standing(units=i), unit) for i, unit in enumerate(turn.units[begun.units :], begun.units)]
        if left and begun.parts:
            left[0] = (Standing(units=begun.units, parts=begun.parts), rest(left[0][1], begun.parts * self._part))
        return [(now, unit) for now, unit in left if unit.start < unit.stop]

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
        if len(unit.spans) == 1:
            changed = self._step.overwritten(unit.spans[0])
        elif unit.spans:
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
        return Turn(stop - len(units), units, self._final(stop), long)

    def _final(self, stop: int) -> int:
        """Up to which element parameters are final when so many units are done."""
        last = stop == len(self._units) or not self._units[stop].spans
        return self._arena.piece.size if last else self._units[stop - 1].stop


def resume(arena: Arena, scratch: Scratch) -> None:
    """Finish what an earlier process has begun."""
    if not arena.unfinished:
        return
    decision = arena.remembering.read()
    assert decision is not None
    gathered = gathered_for(arena, decision)
    finishing = Finishing(arena, decision, gathered, scratch)
    for turn in finishing.turns():
        if isinstance(turn, Sweep):
            for swept in turn.turns:
                finishing.carry_out_swept(swept)
            finishing.swept(turn)
        else:
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
