"""Ways to break what the promises stand on, each of which the worlds must find.

They are put over the real code, so that they stay true as it changes: what is replaced here must be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import pytest

from stepd.contribution import Contribution
from stepd.exchange import Exchange
from stepd.results import Receipt, receipt_word
from stepd.v1 import shard_pb2
from stepd_server.coordinator import events
from stepd_server.coordinator.closing import Closing
from stepd_server.coordinator.membership import Membership
from stepd_server.coordinator.policy import Asynchronous, Bounded
from stepd_server.coordinator.rounds import Rounds
from stepd_server.coordinator.run import Run
from stepd_server.coordinator.store import RunStore
from stepd_server.coordinator.vocabulary import Offer, RoundId, Selected
from stepd_server.shard import finishing, run
from stepd_server.shard.gathered import GatheredFile
from stepd_server.shard.gathering import Gathering, key_of
from stepd_server.shard.journal import Field, Journal
from stepd_server.shard.remembering import Remembering
from stepd_server.shard.run import ShardRun
from tests.simulator.drawing import Theme
from tests.simulator.loop import running

Break: TypeAlias = Callable[[pytest.MonkeyPatch], None]

# By name: what breaks it, and the theme of worlds in which that is to be found soon, from which seed on.
MUTANTS: Final[dict[str, tuple[Break, Theme, int]]] = {}


def mutant(theme: Theme, first: int = 0) -> Callable[[Break], Break]:
    """Args:
    theme: of the worlds.
    first: the first seed that finds it, as things stand: a test need not live through those before.
    """

    def put(function: Break) -> Break:
        MUTANTS[function.__name__] = (function, theme, first)
        return function

    return put


# --- A shard's step -----------------------------------------------------------------------------------------------


@mutant("steps", 6)
def what_was_half_done_is_not_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(finishing, "put_back", lambda *_: None)


@mutant("steps", 2)
def progress_is_not_written_down(patch: pytest.MonkeyPatch) -> None:
    store = Journal.store

    def forget(journal: Journal, field: Field, value: int) -> None:
        if field is not Field.PROGRESS or value <= 0:
            store(journal, field, value)

    patch.setattr(Journal, "store", forget)


@mutant("steps", 2)
def intent_is_not_written_down(patch: pytest.MonkeyPatch) -> None:
    """Until the end: a step that was begun looks as if it never was."""
    store = Journal.store

    def late(journal: Journal, field: Field, value: int) -> None:
        if field is Field.ROUND:
            store(journal, Field.INTENT, value)
        if field is not Field.INTENT:
            store(journal, field, value)

    def end(self: Any) -> None:
        store(self._journal, Field.INTENT, self._arena.round + 1)
        whole(self)

    whole = finishing.Finishing.end
    patch.setattr(Journal, "store", late)
    patch.setattr(finishing.Finishing, "end", end)


@mutant("steps", 1)
def the_decision_of_a_step_is_not_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Remembering, "read", lambda _: None)


@mutant("steps")
def sums_are_reported_before_they_are_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GatheredFile, "write", lambda *_: None)


@mutant("steps", 2)
def a_step_that_was_begun_is_not_finished(patch: pytest.MonkeyPatch) -> None:
    def forget(arena: Any, _: Any) -> None:
        arena.journal.store(Field.INTENT, arena.round)

    patch.setattr(run, "resume", forget)


@mutant("reads", 17)
def readers_read_on_while_a_step_is_applied(patch: pytest.MonkeyPatch) -> None:
    async def go_on(_: ShardRun) -> None: ...

    patch.setattr(ShardRun, "_send_readers_away", go_on)


# --- Contributions ------------------------------------------------------------------------------------------------


@mutant("links")
def what_comes_again_is_added_again(patch: pytest.MonkeyPatch) -> None:
    begin = Gathering.begin

    def anew(self: Gathering, header: shard_pb2.PushHeader) -> Any:
        contribution = begin(self, header)
        contribution.added, contribution.whole = 0, False
        return contribution

    patch.setattr(Gathering, "begin", anew)


@mutant("links", 54)
def sums_by_rank_are_added_as_they_come(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Gathering, "turn", lambda *_: True)


# --- The coordinator ----------------------------------------------------------------------------------------------


@mutant("kills")
def a_decision_is_told_before_it_is_recorded(patch: pytest.MonkeyPatch) -> None:
    perform = Run._perform

    def late(self: Run, action: events.Action) -> None:
        if not isinstance(action, events.Record):
            perform(self, action)
            return

        def record() -> None:
            process = running()
            if process is not None and not process.dead:
                perform(self, action)

        asyncio.get_running_loop().call_later(0.02, record)

    patch.setattr(Run, "_perform", late)


@mutant("kills")
def a_round_that_starts_over_is_the_same_attempt(patch: pytest.MonkeyPatch) -> None:
    def again(self: Rounds) -> None:
        self._attempt = None

    patch.setattr(Rounds, "_start_over", again)


@mutant("kills")
def attempts_are_not_recorded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RunStore, "next_attempt", _first_attempt)


def _first_attempt(store: RunStore) -> events.RecordAttempt:
    last = store.last_decision
    return events.RecordAttempt(RoundId(last.id.round + 1 if last else 0, 0))


@mutant("kills", 73)
def leases_never_run_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Membership, "expire", lambda *_: [])


@mutant("kills", 7)
def a_member_that_is_lost_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    def keep(self: Rounds, member: Any) -> None:
        self._since.pop(member, None)

    patch.setattr(Rounds, "_lose", keep)


@mutant("kills", 2)
def a_shard_that_is_back_is_not_told_what_it_missed(patch: pytest.MonkeyPatch) -> None:
    take_back = Rounds._take_back

    def silent(self: Rounds, event: Any) -> None:
        before = len(self._actions)
        take_back(self, event)
        self._actions[before:] = [one for one in self._actions[before:] if not isinstance(one, events.Finish)]

    patch.setattr(Rounds, "_take_back", silent)


# --- Rounds that are closed before all have come ------------------------------------------------------------------


@mutant("quorum")
def a_late_one_is_added_all_the_same(patch: pytest.MonkeyPatch) -> None:
    """Shards are told whose contributions the round takes, and begin others."""
    take = Gathering.take

    def more(self: Gathering, selected: Any, refused: Any = ()) -> None:
        if self.in_turn:
            take(self, selected, refused)

    def open_still(self: Gathering) -> Any:
        return [c.member for c in self._order if c.track is not None]

    patch.setattr(Gathering, "take", more)
    patch.setattr(Gathering, "close", open_still)


@mutant("quorum")
def what_has_begun_on_some_shards_only_is_left_out(patch: pytest.MonkeyPatch) -> None:
    def everywhere(self: Closing, shards: Any) -> Any:
        if any(shard not in self.begun for shard in shards):
            return None
        return frozenset.intersection(*self.begun.values())

    patch.setattr(Closing, "begun_anywhere", everywhere)


@mutant("quorum", 22)
def who_is_late_is_told_that_it_counts(patch: pytest.MonkeyPatch) -> None:
    fate = ShardRun._fate

    def kind(self: ShardRun, header: Any) -> Any:
        receipt = fate(self, header)
        late = receipt is not None and receipt.status == shard_pb2.RECEIPT_STATUS_LATE
        return receipt._replace(status=shard_pb2.RECEIPT_STATUS_DUPLICATE) if receipt and late else receipt

    patch.setattr(ShardRun, "_fate", kind)
    patch.setattr(Contribution, "is_in_doubt", lambda *_: False)
    patch.setattr(Contribution, "receipt", _as_the_shards_say)


def _as_the_shards_say(contribution: Contribution, _: object = None) -> Receipt:
    word = receipt_word([receipt.status for receipt in contribution.receipts.values()])
    return Receipt(word, 0, contribution.round)


@mutant("late", 23)
def who_is_late_is_told_before_the_round_is_decided(patch: pytest.MonkeyPatch) -> None:
    """It may start over yet, and take it."""
    fate = Gathering.fate

    def soon(self: Gathering, header: shard_pb2.PushHeader) -> Any:
        asked = self.in_turn or key_of(header.member) in self.contributions
        return fate(self, header) if asked else shard_pb2.RECEIPT_STATUS_LATE

    patch.setattr(Gathering, "fate", soon)


@mutant("quorum", 76)
def a_receipt_of_an_attempt_before_is_the_last_word(patch: pytest.MonkeyPatch) -> None:
    """That it counts, though the decision is of others."""
    patch.setattr(Contribution, "receipt", _as_the_shards_say)


# --- Workers ------------------------------------------------------------------------------------------------------


@mutant("kills")
def an_answer_that_was_lost_makes_a_new_contribution(patch: pytest.MonkeyPatch) -> None:
    start_over = Exchange._restarted

    async def forget(self: Exchange, contribution: Any, error: Any) -> None:
        await start_over(self, contribution, error)
        contribution.round += 1
        self._next = contribution.round + 1

    patch.setattr(Exchange, "_restarted", forget)


# --- Policies -----------------------------------------------------------------------------------------------------


@mutant("turns", 12)
def in_turn_push_is_answered_before_its_round_is_decided(patch: pytest.MonkeyPatch) -> None:
    async def soon(self: Exchange, contribution: Contribution) -> Receipt:
        await self._decide_held()
        self._begin(contribution)
        await self._carry(contribution)
        return contribution.receipt()

    patch.setattr(Exchange, "_push", soon)


@mutant("policies", 30)
def turns_are_taken_in_the_middle_of_a_round(patch: pytest.MonkeyPatch) -> None:
    """What shards have said they hold may come to be too old."""
    patch.setattr(Rounds, "last_together", lambda *_: None)


@mutant("turns", 4)
def nothing_is_too_stale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Asynchronous, "is_stale", lambda *_: False)


@mutant("turns", 1)
def nobody_waits_for_the_slowest(patch: pytest.MonkeyPatch) -> None:
    def first(_: Bounded, offers: Sequence[Offer], *__: object) -> Selected | None:
        return Selected(offers[0].member, offers[0].sequence) if offers else None

    patch.setattr(Bounded, "choose", first)
