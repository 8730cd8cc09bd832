"""A small world around the rounds of one run: what it holds, what it does for them, and what must never happen."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import pytest

from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.policies import AnySync, Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Sync
from stepd.rules import LAMB, SGD, Reach
from stepd_server.coordinator import events
from stepd_server.coordinator.policy import LastTogether
from stepd_server.coordinator.rounds import Rounds
from stepd_server.coordinator.vocabulary import (
    Decision,
    Member,
    Outcome,
    Receipt,
    RoundId,
    Selected,
    Standing,
    TensorNorms,
)

Command: TypeAlias = events.Gather | events.Close | events.Select | events.Measure | events.Finish


@dataclass
class Shard:
    """What a shard keeps over its death (first three), and what it does not."""

    round: int = 0
    step: int = 0
    prepared: RoundId | None = None
    gathering: events.Gather | None = None
    arrived: set[Member] = field(default_factory=set)
    up: bool = True
    # Whose contributions have begun; whether no more may; and who is in the round, once that is known.
    begun: set[Member] = field(default_factory=set)
    closed: bool = False
    final: tuple[Selected, ...] | None = None
    # What waits here, with the step that it is based on.
    held: dict[tuple[Member, int], int] = field(default_factory=dict)

    def gather(self, gather: events.Gather) -> None:
        self.gathering, self.arrived, self.begun, self.closed = gather, set(), set(), gather.in_turn
        self.final = (gather.selected,) if gather.selected else None

    @property
    def contributors(self) -> tuple[Member, ...]:
        """Who contributes to what is gathered, as far as is known here."""
        assert self.gathering is not None
        if self.final is not None:
            return tuple(selected.member for selected in self.final)
        return self.gathering.members


class RoundsWorld:
    """With a coordinator and a network; shards and workers are those of whoever derives from it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.shards = [Shard() for _ in range(self.random.choice((1, 2, 3)))]
        self.exact = self.random.choice((None, None, 1, 2, 3))
        self.layout = 0  # so many groups were added
        self.rule = self.random.choice((SGD(lr=0.1), LAMB()))
        self.spec = self._spec()
        self.rounds = Rounds(len(self.shards), self.spec)
        self.last_together: LastTogether | None = None
        self.pending: list[tuple[int, Callable[[], None]]] = []
        self.incarnation = 0
        self.members: dict[str, Member] = {}
        self.first: dict[Member, RoundId] = {}
        self.recorded: dict[int, Decision] = {}
        self.given_away: set[RoundId] = set()
        self.casts: dict[RoundId, tuple[Member, ...]] = {}
        self.attempt = events.RecordAttempt(RoundId(0, 0))
        self.measured: set[RoundId] = set()
        self.left_out: dict[int, set[Member]] = {}
        self.summed: dict[RoundId, set[frozenset[Member]]] = {}
        # Of contributions that are taken in turn: the one that each worker is at, with what it is based on; and what
        # became of those that are done with.
        self.current: dict[Member, tuple[int, int]] = {}
        self.counted: set[tuple[Member, int]] = set()
        self.refused: dict[tuple[Member, int], Receipt] = {}
        self.given_up: set[tuple[Member, int]] = set()
        self.receipts: set[Receipt] = set()
        self.standings: tuple[tuple[Member, Standing], ...] = ()
        self.turns: dict[Member, int] = {}

    def _sync(self) -> AnySync:
        kind = self.random.choice(("all", "all", "quorum", "async", "stale", "bounded"))
        if kind == "bounded":
            self.exact = self.exact or 3
            return BoundedStaleness(self.exact, self.random.choice((0, 1, 3)))
        elif kind in ("async", "stale"):
            self.exact = None
            return Async(
                self.random.choice((0, 1, 2)) if kind == "stale" else None, self.random.choice((None, "inverse"))
            )
        quorum = self.random.randint(1, self.exact or 3) if kind == "quorum" else None
        return Sync(self.exact, quorum)

    def _spec(self) -> RunSpec:
        clip = self.random.choice((None, Clip(ClipNorm(1.0)), Clip(ClipNorm(2.0)), Clip(None, ClipValue(1.0))))
        return RunSpec(
            name="world",
            parameters=(ParameterSpec("w", (4,), np.dtype(np.float32)),),
            groups=(GroupSpec(self.rule),) * (1 + self.layout),
            clip=clip,
            sync=self._sync(),
            on_nonfinite=self.random.choice(("skip", "quarantine", "error")),
        )

    # --- Coordinator ----------------------------------------------------------------------------------------------

    def tell(self, event: events.Event) -> None:
        for action in self.rounds.apply(event):
            match action:
                case events.Record():
                    self._record(action)
                case events.RecordAttempt():
                    self.attempt = action
                case events.SetTimer(at, timer):
                    self.post(-1, lambda t=timer, at=at: self.tell(events.TimeUp(at, t)))
                case events.Lost(problem):
                    pytest.fail(f"lost: {problem}")
                case events.Gather() | events.Close() | events.Select() | events.Measure() | events.Finish():
                    self._check_command(action)
                    for shard in action.shards:
                        self.post(shard, partial(self.shard_acts, shard, action))

    def _check_command(self, action: Command) -> None:
        match action:
            case events.Gather():
                self._check_gather(action)
            case events.Select():
                self._check_selected(action.selected)
            case events.Measure(_, draft):
                assert draft.id not in self.measured, "an attempt was measured twice"
                self.measured.add(draft.id)
            case events.Finish(_, decision):
                assert self.recorded[decision.id.round] == decision, "told before it was recorded"

    def _record(self, action: events.Record) -> None:
        decision = action.decision
        assert decision.id.round not in self.recorded, "a second decision"
        assert decision.id.round == len(self.recorded), "a round was left out"
        behind = [shard for shard in self.shards if shard.round < decision.id.round]
        assert not behind, "decided before every shard had carried out the decision before"
        assert len(decision.groups) == 1 + self.layout, "decided without a group that was added"
        self._check_members(decision)
        self._check_counted(decision)
        self._check_norms(decision)
        self.recorded[decision.id.round] = decision
        self.standings = action.standings

    def _check_members(self, decision: Decision) -> None:
        if decision.members:
            asked = self.casts[decision.id]
            assert set(decision.members) <= set(asked), "decided with others than those asked"
            assert self.summed[decision.id] == {frozenset(decision.members)}, "shards have added up those of others"
            if not decision.counted:
                assert {*decision.members, *decision.late} >= set(asked), "somebody is neither in the round nor late"
        assert not set(decision.members) & {*decision.late, *decision.quarantined}

    def _check_counted(self, decision: Decision) -> None:
        for member, sequence, _ in decision.counted:
            assert (member, sequence) not in self.counted, "a contribution was counted twice"
            assert (member, sequence) not in self.refused, "a contribution was counted that was refused"
            self.counted.add((member, sequence))
            if isinstance(self.spec.sync, BoundedStaleness) and member in self.turns:
                self.turns[member] += 1
                ahead = self.turns[member] - min(self.turns.values())
                assert ahead <= max(self.spec.sync.staleness, 1), "somebody ran ahead"

    def _check_selected(self, selected: tuple[Selected, ...]) -> None:
        sync = self.spec.sync
        for member, sequence, scale in selected:
            assert (member, sequence) not in self.counted, "selected what was counted"
            if isinstance(sync, Async) and sequence and self.current.get(member, (0, 0))[0] == sequence:
                stale = self.rounds.step - self.current[member][1]
                # What was selected before the limit changed stays.
                assert scale in (1.0, 1 / (1 + stale))
        if any(one.sequence for one in selected):
            self.casts[self.rounds.id] = tuple(one.member for one in selected)

    def _check_norms(self, decision: Decision) -> None:
        if self.rule.reach is Reach.LAYERWISE and decision.outcome is Outcome.APPLIED:
            assert decision.id in self.measured, "decided without having measured"
            # Each shard's part says which attempt it is of.
            expected = sum(self.measure_of(index, decision.id) for index in range(len(self.shards)))
            assert decision.norms == (TensorNorms(0, math.sqrt(expected), 0.0),), "norms of another attempt"
        else:
            assert not decision.norms

    def _check_gather(self, gather: events.Gather) -> None:
        assert gather.id not in self.given_away, "the number of an attempt was given away twice"
        assert gather.id.attempt == 0 or self.attempt.id == gather.id, "an attempt was told before it was recorded"
        self.given_away.add(gather.id)
        self.casts[gather.id] = gather.members
        assert bool(gather.members) != gather.in_turn, "nobody asked, or somebody who should wait"
        if gather.selected:
            self._check_selected((gather.selected,))
        left_out = self.left_out.setdefault(gather.id.round, set())
        assert left_out.issubset(gather.quarantined), "who was left out of the round was forgotten"
        assert not set(gather.quarantined) & set(gather.members), "somebody asked who is left out"
        left_out.update(gather.quarantined)
        assert gather.layout == self.layout, "gathered by a layout that is not the present one"
        for member in gather.members:
            assert self.members.get(member.worker) == member, "somebody asked who is not a member"
            assert self.first[member] <= gather.id or self.first[member].round == gather.id.round, "asked too early"

    def replace_coordinator(self) -> None:
        """With what was recorded: members as well, but for who is forgotten while nobody listens."""
        last = self.recorded[max(self.recorded)] if self.recorded else None
        following = last.id.round + 1 if last else 0
        under_way = self.attempt.id.round == following
        self.pending.clear()
        if self.random.random() < 0.3:
            self.members.clear()
        self.rounds = Rounds(
            len(self.shards),
            self.spec,
            last=last,
            attempt=self.attempt.id.attempt + 1 if under_way else 1,
            away=range(len(self.shards)),
            layout=self.layout,
            members={member: self.first[member].round for member in self.members.values()},
            left_out=self.attempt.left_out if under_way else (),
            nonfinite=self.attempt.nonfinite if under_way else (),
            standings=dict(self.standings),
            last_together=self.last_together,
        )
        self.turns = {m: s.turns for m, s in self.rounds._line.standings.items()}
        for index, shard in enumerate(self.shards):
            if shard.up:
                self.tell(events.ShardBack(index, shard.round, shard.step))

    # --- Network --------------------------------------------------------------------------------------------------

    def post(self, shard: int, deliver: Callable[[], None]) -> None:
        for _ in range(self.random.choice((1, 1, 1, 2))):
            self.pending.append((shard, deliver))

    def deliver_one(self) -> None:
        if self.pending:
            self.pending.pop(self.random.randrange(len(self.pending)))[1]()

    # --- Shards, to be had --------------------------------------------------------------------------------------------

    def shard_acts(self, shard: int, action: Command) -> None:
        raise NotImplementedError

    def measure_of(self, index: int, id_: RoundId) -> float:
        """What a shard's part of the norms of tensors is in an attempt, so that it says which it is of."""
        return 1.0 + index + 100.0 * id_.attempt + 10000.0 * id_.round
