"""Rounds against a small world that is as bad as it can be, from a seed.

Messages are late, doubled and out of order; shards die with what they have not written and come back; the coordinator
is replaced; workers join, leave, are lost and come back under their names, break off and give up what they send; groups
are added, and the policy changes. Whatever happens, what must never happen is asserted on the way; at the end the
weather clears, and the run must go on.

STEPD_SEED=N repeats one world; STEPD_WORLDS=N makes so many.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from stepd_server.coordinator import events
from stepd_server.coordinator.vocabulary import (
    Decision,
    Member,
    Nonfinite,
    Offer,
    Outcome,
    Phase,
    Receipt,
    RoundId,
    Sums,
)
from stepd_server.exact import ExactSum

from .rounds_world import Command, RoundsWorld

SEED = os.environ.get("STEPD_SEED")
WORLDS = int(os.environ.get("STEPD_WORLDS", "150"))


class World(RoundsWorld):
    # --- Shards ---------------------------------------------------------------------------------------------------

    def shard_acts(self, shard: int, action: Command) -> None:
        match action:
            case events.Gather():
                self._shard_gathers(shard, action)
            case events.Close(_, at):
                self._shard_closes(shard, at)
            case events.Select():
                self._shard_selects(shard, action)
            case events.Measure(_, draft):
                self._shard_measures(shard, draft)
            case events.Finish(_, decision):
                self._shard_finishes(shard, decision)

    def _shard_gathers(self, index: int, gather: events.Gather) -> None:
        shard = self.shards[index]
        if shard.round < gather.id.round:  # it holds back what it is not ready for
            self.pending.append((index, lambda: self._shard_gathers(index, gather)))
        elif shard.round == gather.id.round and (shard.gathering is None or shard.gathering.id < gather.id):
            shard.gather(gather)
            for (member, sequence), based_on in shard.held.items() if gather.in_turn else ():
                self._tell_offer(index, Offer(member, sequence, based_on))
            for member, sequence, _ in shard.final or ():
                if gather.in_turn and (member, sequence) not in shard.held:
                    self._tell_withdrawn(index, member, sequence)

    def _shard_closes(self, index: int, at: RoundId) -> None:
        shard = self.shards[index]
        gather = shard.gathering
        if gather is not None and gather.id == at and shard.round == at.round:
            shard.closed = True
            begun = tuple(shard.begun)
            self.post(index, lambda: self.tell(events.Closed(index, at, begun)))

    def _shard_selects(self, index: int, action: events.Select) -> None:
        shard = self.shards[index]
        gather = shard.gathering
        if gather is None or gather.id != action.id or shard.round != action.id.round:
            return
        for member, sequence, receipt in action.refused:
            for held in [held for held in shard.held if held[0] == member and held[1] <= sequence]:
                del shard.held[held]
                self._receive(*held, receipt)
        if action.selected and shard.final is None:
            shard.final = action.selected
            if not gather.in_turn:
                assert shard.begun.issubset(shard.contributors), "left out what had begun"
                self._shard_sums(index, gather)
                return
            (member, sequence, _) = action.selected[0]
            if (member, sequence) not in shard.held:
                self._tell_withdrawn(index, member, sequence)

    def _receive(self, member: Member, sequence: int, receipt: Receipt) -> None:
        """A worker is told what became of a contribution."""
        self.receipts.add(receipt)
        if receipt is Receipt.DUPLICATE:
            assert (member, sequence) in self.counted | self.given_up, "called a duplicate, and never counted"
        # Of what came before its present one a worker knows already what became.
        if self.current.get(member, (0, 0))[0] == sequence:
            assert receipt is not Receipt.STALE or (member, sequence) not in self.counted, "called stale, and counted"
            self.refused.setdefault((member, sequence), receipt)
            del self.current[member]

    def contribute(self, index: int) -> None:
        shard = self.shards[index]
        if not shard.up or shard.gathering is None or shard.gathering.id.round != shard.round:
            return
        gather = shard.gathering
        if gather.in_turn and self.random.random() < 0.5:
            self._hold(index)
            return
        alive = [m for m in shard.contributors if self.members.get(m.worker) == m and m not in shard.arrived]
        if not alive:
            return
        member = self.random.choice(alive)
        if gather.in_turn:
            assert shard.final is not None
            if shard.held.pop((member, shard.final[0].sequence), None) is None:
                return
        elif member not in shard.begun:
            if shard.closed and shard.final is None:
                return
            shard.begun.add(member)
            if self.random.random() < 0.5:
                return
        shard.arrived.add(member)
        self.post(index, lambda: self.tell(events.Arrived(index, gather.id, member)))
        self._shard_sums(index, gather)

    def _shard_sums(self, index: int, gather: events.Gather) -> None:
        shard = self.shards[index]
        if shard.arrived.issuperset(shard.contributors) and shard.prepared != gather.id:
            shard.prepared = gather.id
            self.summed.setdefault(gather.id, set()).add(frozenset(shard.arrived))
            sums = self._sums(shard.contributors, 1 + gather.layout)
            self.post(index, lambda: self.tell(events.Gathered(index, gather.id, sums)))

    def _hold(self, index: int) -> None:
        """A worker's contribution comes to wait on a shard, or breaks off there."""
        shard = self.shards[index]
        if not self.members:
            return
        member = self.members[self.random.choice(sorted(self.members))]
        last = max((s for m, s in {*self.counted, *self.refused, *self.given_up} if m == member), default=0)
        if member not in self.current or (member, self.current[member][0]) in self.counted:
            self.current[member] = (last + 1, max(0, shard.step - self.random.choice((0, 0, 1, 3))))
        sequence, based_on = self.current[member]
        if (member, sequence - 1) in self.counted and self.random.random() < 0.1:
            sequence -= 1  # the answer was lost
        if (member, sequence) not in shard.held and member not in shard.arrived:
            shard.held[member, sequence] = based_on
            self._tell_offer(index, Offer(member, sequence, based_on))
        elif self.random.random() < 0.2:
            if shard.held.pop((member, sequence), None) is not None:
                self._tell_withdrawn(index, member, sequence)
            if self.random.random() < 0.2:
                self.given_up.add((member, sequence))
                self.current[member] = (sequence + 1, shard.step)

    def _tell_offer(self, index: int, offer: Offer) -> None:
        gathering = self.shards[index].gathering
        assert gathering is not None
        self.post(index, lambda: self.tell(events.Offered(index, gathering.id, offer)))

    def _tell_withdrawn(self, index: int, member: Member, sequence: int) -> None:
        gathering = self.shards[index].gathering
        assert gathering is not None
        self.post(index, lambda: self.tell(events.Withdrawn(index, gathering.id, member, sequence)))

    def _sums(self, members: tuple[Member, ...], groups: int) -> Sums:
        part = ExactSum()
        part.add(self.random.random())
        weather = self.random.random()
        nonfinite = (Nonfinite(self.random.choice(members), 0),) if weather < 0.05 else ()
        return Sums((part,) * groups, (None,) * groups, nonfinite, overflow=weather > 0.97)

    def _shard_measures(self, index: int, draft: Decision) -> None:
        shard = self.shards[index]
        if shard.gathering is None or shard.gathering.id != draft.id:
            return  # refused: the attempt is over there
        assert shard.prepared == draft.id, "a shard was told to measure what it has not gathered"
        part = ExactSum()
        part.add(self.measure_of(index, draft.id) if self.random.random() < 0.98 else math.inf)
        self.post(index, lambda: self.tell(events.Measured(index, draft.id, {0: (part, ExactSum())})))

    def _shard_finishes(self, index: int, decision: Decision) -> None:
        shard = self.shards[index]
        if shard.round == decision.id.round:
            if decision.outcome is Outcome.APPLIED:
                assert shard.prepared == decision.id, "a shard was told to apply what it has not gathered"
            shard.round, shard.step, shard.gathering = shard.round + 1, decision.step, None
        assert shard.round > decision.id.round, "a shard has missed a decision"
        step = shard.step
        self.post(index, lambda: self.tell(events.Finished(index, decision.id.round, step)))

    def kill(self, index: int) -> None:
        shard = self.shards[index]
        if shard.up:
            shard.up, shard.gathering, shard.arrived = False, None, set()
            shard.held.clear()
            self.pending = [item for item in self.pending if item[0] != index]
            self.tell(events.ShardAway(index))

    def revive(self, index: int) -> None:
        shard = self.shards[index]
        if not shard.up:
            shard.up = True
            self.tell(events.ShardBack(index, shard.round, shard.step))

    # --- Workers --------------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        if self.exact is not None and name not in self.members and len(self.members) >= self.exact:
            return
        self.incarnation += 1
        member = self.members[name] = Member(name, self.incarnation, ord(name) - ord("a"))
        # Bound before the event is taken in: what a worker is told is what holds from then on.
        self.first[member] = RoundId(0, 0)
        self.turns = {m: turns for m, turns in self.turns.items() if m.worker != name}
        self.turns[member] = min(self.turns.values(), default=0)
        self.tell(events.MemberJoined(member))
        self.first[member] = self.rounds.first_round_of(member)

    def leave(self, name: str) -> None:
        member = self.members.get(name)
        if member is None:
            return
        gathers = [shard.gathering for shard in self.shards]
        acknowledged = {
            gather.id
            for gather, shard in zip(gathers, self.shards, strict=True)
            if gather and member in shard.arrived and gather.id.round == shard.round
        }
        everywhere = len(acknowledged) == 1 and all(g and g.id in acknowledged for g in gathers)
        contributed = acknowledged.pop() if everywhere else None
        del self.members[name]
        self.turns.pop(member, None)
        self.tell(events.MemberLeft(member, contributed))
        if contributed:  # its lease ends at last, in whatever state things are
            self.post(-1, lambda: self.tell(events.MemberLost(member)))

    def lose(self, name: str) -> None:
        member = self.members.pop(name, None)
        if member:
            self.turns.pop(member, None)
            self.tell(events.MemberLost(member))

    # --- Weather --------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        shard = self.random.randrange(len(self.shards))
        name = self.random.choice("abcd")
        roll = self.random.random()
        chances: tuple[tuple[float, Callable[[], None]], ...] = (
            (0.40, self.deliver_one),
            (0.80, lambda: self.contribute(shard)),
            (0.86, lambda: self.join(name)),
            (0.89, lambda: self.leave(name)),
            (0.91, lambda: self.lose(name)),
            (0.93, lambda: self.kill(shard)),
            (0.97, lambda: self.revive(shard)),
            (0.98, self.change_policy),
            (0.985, self.replace_coordinator),
            (0.99, self.add_group),
        )
        next((act for chance, act in chances if roll < chance), self.deliver_one)()

    def change_policy(self) -> None:
        before, exact = self.spec, self.exact
        self.spec = self._spec()
        if self.exact is not None and len(self.members) > self.exact:
            self.spec, self.exact = before, exact  # refused
        object.__setattr__(self.spec, "on_nonfinite", before.on_nonfinite)
        if type(self.spec.sync) is not type(before.sync):
            self.turns = dict.fromkeys(self.members.values(), 0)
        self.last_together = self.rounds.last_together(self.spec.sync)
        self.tell(events.PolicyChanged(self.spec))

    def add_group(self) -> None:
        self.layout += 1
        self.spec = replace(self.spec, groups=self.spec.groups + self.spec.groups[:1])
        self.tell(events.LayoutChanged(self.spec, self.layout))

    def clear_up(self) -> None:
        """Everything lives, whoever is a member contributes: two more rounds must be decided."""
        for index in range(len(self.shards)):
            self.revive(index)
        for name in "abcd":
            self.join(name)
        goal = len(self.recorded) + 2
        for _ in range(3000):
            self.deliver_one()
            self.contribute(self.random.randrange(len(self.shards)))
            if self.random.random() < 0.02:
                self._send_again()
            if len(self.recorded) >= goal:
                return
        pytest.fail(f"nothing goes on: {self.rounds!r}")

    def _send_again(self) -> None:
        """What has waited for long is sent again, and so offered again."""
        for index, shard in enumerate(self.shards):
            gather = shard.gathering
            if gather is None or not gather.in_turn:
                continue
            for (member, sequence), based_on in shard.held.items():
                self.tell(events.Offered(index, gather.id, Offer(member, sequence, based_on)))


def one_world(seed: int) -> World:
    world = World(seed)
    try:
        for _ in range(world.random.choice((50, 300, 800))):
            world.turn()
        world.clear_up()
    except BaseException as error:
        error.add_note(f"STEPD_SEED={seed} repeats it; {world.rounds!r}")
        raise
    return world


def test_no_weather_makes_two_decisions_of_a_round_or_stops_the_run() -> None:
    if SEED is not None:
        one_world(int(SEED))
        return
    start = random.SystemRandom().randrange(1 << 32)
    worlds = [one_world(seed) for seed in range(start, start + WORLDS)]
    assert all(world.rounds.phase is not Phase.LOST for world in worlds)


def test_the_weather_is_bad_enough_to_mean_something() -> None:
    """Of chosen worlds, so that it does not go by luck: every outcome comes about."""
    worlds = [one_world(seed) for seed in range(150)]
    decided = [decision for world in worlds for decision in world.recorded.values()]
    assert {decision.outcome for decision in decided} == set(Outcome)
    assert any(decision.quarantined for decision in decided)
    assert any(decision.norms and decision.id.attempt for decision in decided)
    assert any(decision.id.attempt for decision in decided)
    assert any(not decision.members and not decision.quarantined for decision in decided)
    assert any(decision.late and decision.outcome is Outcome.APPLIED for decision in decided)
    assert any(decision.counted and decision.id.attempt for decision in decided)
    assert {receipt for world in worlds for receipt in world.receipts} == set(Receipt)


def test_the_same_seed_makes_the_same_world() -> None:
    first, second = one_world(7), one_world(7)
    assert repr(first.rounds) == repr(second.rounds)
    assert list(map(str, first.recorded.values())) == list(map(str, second.recorded.values()))
