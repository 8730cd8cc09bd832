"""The synchronous round as a state machine: events in, actions out. No sockets, threads, tasks or clocks.

A run goes from round to round. Shards gather the contributions of the members and report sums; when all have, there is
one decision; it is recorded, then told, and at once the shards are asked to gather the next round: a shard starts on
it when it has finished the last. Only when every shard has finished round t can round t + 1 be decided, so shards are
never more than one decision apart, and the last decision is all that a coordinator must remember.

    waiting      fewer members than the policy wants
    gathering    an attempt is under way
    measuring    all contributions are in, and shards find norms of tensors that the decision needs
    finishing    an attempt is under way, but some shard has yet to carry out the last decision
    recovering   a shard is away; what was gathered is dropped, and the round starts over when it is back
    lost         a shard has lost its part; nothing goes on

An attempt is over when a member of it is lost before its contribution is whole on every shard, when values that are
not finite are left out, when a shard goes away, when what it is to add up changes, or when a group is added. The next
attempt has the next number and whoever is a member then; workers send their gradient again by themselves.

A worker that joins in the middle of a round takes part
- in this round, as a new attempt, while no contribution has arrived on any shard and nobody has left who might have
  contributed: a worker has computed nothing in vain, and workers that start together step together;
- in the next one otherwise: nobody sends a gradient twice for a newcomer. Its first round is fixed with that; should
  nobody else be left in the round before, that round ends as skipped rather than to ask a newcomer who waits for it.

A worker that leaves (or is lost) when its contribution is whole on every shard stays in this round and is gone after
it. Should the round start over, its contribution is gone as well: there is nobody to send it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from stepd.definitions import RunSpec
from stepd_server.coordinator import decision as decisions
from stepd_server.coordinator.attempt import Attempt
from stepd_server.coordinator.events import (
    Action,
    Arrived,
    Commit,
    Event,
    Finish,
    Finished,
    Gather,
    Gathered,
    LayoutChanged,
    Lost,
    Measure,
    Measured,
    MemberJoined,
    MemberLeft,
    MemberLost,
    PolicyChanged,
    Record,
    RecordAttempt,
    ShardAway,
    ShardBack,
    ShardLost,
    StateCommitted,
    StateLoaded,
)
from stepd_server.coordinator.policy import policy_of
from stepd_server.coordinator.vocabulary import Decision, Member, Nonfinite, Phase, RoundId


class Rounds:
    """The rounds of one run.

    Attributes:
        step: steps applied.
        id: the attempt that is gathered now, or will be next.
        last: the latest decision.
    """

    def __init__(
        self,
        shards: int,
        spec: RunSpec,
        *,
        last: Decision | None = None,
        attempt: int = 0,
        away: Iterable[int] = (),
        layout: int = 0,
        state_loaded: bool = False,
        members: Mapping[Member, int] | None = None,
        left_out: Iterable[Member] = (),
        nonfinite: Iterable[Nonfinite] = (),
    ) -> None:
        """A new run; or, with what a coordinator before this one recorded, an old one.

        Args:
            shards: how many there are.
            spec: of the run; its parameters are of no interest here.
            last: the last recorded decision.
            attempt: the first of the next round that has not been given away.
            away: shards that have yet to say where they stand.
            layout: version of the layout.
            state_loaded: a state has been loaded; shards are told of it again.
            members: who has joined, each with the first round that takes its contribution.
            left_out: members that an attempt of the round has been told to do without.
            nonfinite: whose values were not finite, in an attempt of the round.
        """
        self._all: Final = tuple(range(shards))
        self._spec = spec
        self._policy = policy_of(spec.sync)
        self._layout = layout
        self.last = last
        self.step = last.step if last else 0
        self.id = RoundId(last.id.round + 1 if last else 0, attempt)
        # Members, each with the first round that takes its contribution.
        self._since: dict[Member, int] = dict(members or {})
        self._attempt: Attempt | None = None
        # Of this round, over its attempts.
        self._nonfinite: tuple[Nonfinite, ...] = tuple(nonfinite)
        self._left_out: frozenset[Member] = frozenset(left_out)
        # Shards that have yet to carry out the last decision, as far as is known, and shards that do not answer.
        self._unfinished: set[int] = set(self._all) if last else set()
        self._away: set[int] = set(away)
        # Shards that, as far as is known, have yet to use the latest state that was loaded.
        self._uncommitted: set[int] = set(self._all) if state_loaded else set()
        self._lost = ""
        self._actions: list[Action] = []

    # --- What others see ------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        if self._lost:
            return Phase.LOST
        elif self._away:
            return Phase.RECOVERING
        elif self._unfinished:
            return Phase.FINISHING
        elif self._attempt and self._attempt.draft:
            return Phase.MEASURING
        return Phase.GATHERING if self._attempt else Phase.WAITING

    @property
    def waits_for_members(self) -> int:
        """How many more members the round needs before it can be gathered."""
        return 0 if self._attempt else self._policy.missing(len(self._since))

    @property
    def problem(self) -> str:
        """One sentence on why nothing goes on; empty if it does."""
        if self._lost:
            return self._lost
        elif self._away:
            away = ", ".join(map(str, sorted(self._away)))
            return f"shard {away} is away" if len(self._away) == 1 else f"shards {away} are away"
        elif missing := self.waits_for_members:
            return f"waits for {missing} more worker{'s' * (missing > 1)}, has {len(self._since)}"
        return ""

    @property
    def loads_state(self) -> bool:
        """Whether some shard has yet to use the latest state that was loaded."""
        return bool(self._uncommitted)

    @property
    def rates(self) -> tuple[float, ...]:
        """By group: the rate of the next step."""
        return decisions.rates(self._spec, self.step)

    def first_round_of(self, member: Member) -> RoundId:
        """The attempt that wants the member's next contribution, or the first round that will."""
        first = self.id.round + 1 if member in self._left_out else self._since.get(member, 0)
        return self.id if first <= self.id.round else RoundId(first, 0)

    @property
    def awaited(self) -> tuple[Member, ...]:
        """Whose contribution is not whole on every shard."""
        return self._attempt.awaited(self._all) if self._attempt else ()

    def __repr__(self) -> str:
        """Everything that matters, in one line."""
        parts = [f"{self.phase.value} {self.id} at step {self.step}"]
        if self._attempt:
            parts.append(str(self._attempt))
        members = sorted(self._since, key=lambda member: member.rank)
        later = {m: first for m, first in self._since.items() if first > self.id.round}
        names = (f"{m} (from round {later[m]})" if m in later else str(m) for m in members)
        parts.append("members " + (" ".join(names) or "none"))
        if self._left_out:
            parts.append("left out " + " ".join(map(str, sorted(self._left_out))))
        if self._unfinished:
            parts.append(f"unfinished on {' '.join(map(str, sorted(self._unfinished)))}")
        if self.problem:
            parts.append(self.problem)
        return "; ".join(parts)

    # --- Events ---------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> list[Action]:
        """Take an event in; the answer is what is to be done, in order."""
        self._actions = []
        match event:
            case MemberJoined(member):
                self._join(member)
            case MemberLeft(member, contributed):
                self._leave(member, contributed)
            case MemberLost(member):
                self._lose(member)
            case Arrived() | Gathered() | Measured():
                self._take_in(event)
            case Finished():
                self._finish(event)
            case ShardAway(shard):
                self._away.add(shard)
                self._start_over()
            case ShardBack():
                self._take_back(event)
            case ShardLost(shard, problem):
                self._give_up(f"shard {shard} {problem}")
            case PolicyChanged(spec):
                self._change(spec)
            case LayoutChanged(spec, layout):
                # What was gathered knows nothing of the new group; nor do its sums.
                self._spec, self._layout = spec, layout
                self._start_over()
            case StateLoaded(spec):
                self._load_state(spec)
            case StateCommitted(shard):
                self._uncommitted -= {shard} - self._away
        self._advance()
        return self._actions

    def _join(self, member: Member) -> None:
        older = next((m for m in self._since if m.worker == member.worker), None)
        if older is not None:
            if older.incarnation >= member.incarnation:
                return
            del self._since[older]
        if self._attempt and self._may_start_over_for_newcomer(older):
            self._start_over()
        self._since[member] = self.id.round + (self._attempt is not None)

    def _may_start_over_for_newcomer(self, older: Member | None) -> bool:
        assert self._attempt is not None
        if older in self._attempt.members:
            return True  # it will not contribute under its old incarnation any more
        return not self._attempt.has_arrivals and all(member in self._since for member in self._attempt.members)

    def _leave(self, member: Member, contributed: RoundId | None) -> None:
        # The worker has receipts of every shard: they may have overtaken the shards' word to us.
        if member in self._since and contributed != self.id:
            self._lose(member)
        self._since.pop(member, None)

    def _lose(self, member: Member) -> None:
        # Also one that has left: it may have claimed a contribution that never arrived.
        self._since.pop(member, None)
        if self._attempt and member in self._attempt.members and not self._attempt.is_whole(member, self._all):
            self._start_over()

    def _take_in(self, event: Arrived | Gathered | Measured) -> None:
        if self._attempt is None or event.id != self.id:
            return
        if isinstance(event, Arrived):
            self._attempt.arrive(event.shard, event.member)
        elif isinstance(event, Measured):
            self._attempt.measures[event.shard] = event.measures
        else:
            self._attempt.gather(event.shard, event.sums)

    def _finish(self, event: Finished) -> None:
        if self.last is None or event.round != self.last.id.round or event.shard not in self._unfinished - self._away:
            return
        if event.step != self.last.step:
            self._give_up(
                f"shard {event.shard} finished round {event.round} at step {event.step}, not {self.last.step}"
            )
            return
        self._unfinished.discard(event.shard)

    def _take_back(self, event: ShardBack) -> None:
        if event.shard not in self._away or self._lost:
            return
        self._away.discard(event.shard)
        stands = (event.round, event.step)
        if event.torn:
            self._give_up(f"shard {event.shard} died in the middle of a step and cannot put its part together")
        elif stands == (self.id.round, self.step):
            self._unfinished.discard(event.shard)
        elif self.last and event.shard in self._unfinished and stands == (self.last.id.round, self.last.step_before):
            self._actions.append(Finish((event.shard,), self.last))
        else:
            self._give_up(
                f"shard {event.shard} came back at round {event.round}, step {event.step}; "
                f"the run is at round {self.id.round}, step {self.step}"
            )
        if not self._lost:
            self._commit({event.shard})

    def _load_state(self, spec: RunSpec) -> None:
        # What is gathered was meant for the old state, and is not applied to the new one.
        self._spec = spec
        self._start_over()
        self._uncommitted = set(self._all)
        self._commit(set(self._all) - self._away)

    def _commit(self, shards: set[int]) -> None:
        if shards := shards & self._uncommitted:
            self._actions.append(Commit(tuple(sorted(shards)), self.id.round))

    def _change(self, spec: RunSpec) -> None:
        before, self._spec = self._spec, spec
        self._policy = policy_of(spec.sync)
        if self._attempt is None:
            return
        takes_part = {*self._attempt.members, *self._left_out}
        # A changed limit of the norm, like a rate, needs no new sums: the decision uses the latest.
        if decisions.what_is_summed(before) != decisions.what_is_summed(spec) or self._policy.missing(len(takes_part)):
            self._start_over()

    # --- Going on -------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Go on as far as nothing stands in the way."""
        if self._lost or self._away or self._uncommitted:
            return
        if self._attempt is not None and self._attempt.draft:
            if self._attempt.is_measured(self._all):
                measures = [self._attempt.measures[shard] for shard in self._all]
                self._conclude(decisions.complete(self._spec, self._attempt.draft, measures))
            return
        if self._attempt is not None:
            if not self._unfinished and self._attempt.is_gathered(self._all):
                self._judge(self._attempt)
            return
        present = [member for member, first in self._since.items() if first <= self.id.round]
        contributors = self._policy.contributors([m for m in present if m not in self._left_out])
        if not self._policy.missing(len(present)) and contributors:
            self._gather(contributors)
        elif not self._policy.missing(len(self._since)) and not self._unfinished:
            # Nobody is left in this round, but there are enough for the next.
            self._decide(decisions.nobody_left(self._spec), ())

    def _gather(self, members: tuple[Member, ...]) -> None:
        self._attempt = Attempt(members)
        left_out = tuple(sorted(self._left_out, key=lambda member: member.rank))
        if self.id.attempt:
            self._actions.append(RecordAttempt(self.id, left_out, self._nonfinite))
        how = (self._spec.clip, self._spec.sync.reduce, self._spec.sync.deterministic)
        self._actions.append(Gather(self._all, self.id, members, *how, left_out, self._layout))

    def _start_over(self) -> None:
        """The attempt is over, if there is one. Who asks before the next one begins is told its number already."""
        if self._attempt is not None:
            self._attempt = None
            self.id = RoundId(self.id.round, self.id.attempt + 1)

    def _judge(self, attempt: Attempt) -> None:
        sums = [attempt.sums[shard] for shard in self._all]
        found = decisions.merge_nonfinite(one for part in sums for one in part.nonfinite)
        if not found:
            self._decide(decisions.judge(self._spec, sums), attempt.members)
            return
        self._nonfinite = decisions.merge_nonfinite((*self._nonfinite, *found))
        if self._spec.on_nonfinite == "quarantine":
            self._left_out |= {one.member for one in found}
            if self._left_out.issuperset(attempt.members):
                self._decide(decisions.nobody_left(self._spec), ())
                return
            self._start_over()
            self._advance()
        else:
            self._decide(decisions.not_finite(self._spec), attempt.members)

    def _decide(self, ending: decisions.Ending, members: tuple[Member, ...]) -> None:
        decision = decisions.decide(
            self._spec,
            ending,
            id=self.id,
            step=self.step,
            members=members,
            nonfinite=self._nonfinite,
            quarantined=tuple(sorted(self._left_out, key=lambda member: member.rank)),
        )
        if self._attempt is not None and decisions.lacks_norms(self._spec, decision):
            # Rates and factors stay what they are now, also if the owner changes them meanwhile.
            self._attempt.draft = decision
            self._actions.append(Measure(self._all, decision))
            return
        self._conclude(decision)

    def _conclude(self, decision: Decision) -> None:
        self._actions += [Record(decision), Finish(self._all, decision)]
        self.last, self.step = decision, decision.step
        self.id = RoundId(self.id.round + 1, 0)
        self._attempt = None
        self._nonfinite, self._left_out = (), frozenset()
        self._unfinished = set(self._all)
        self._advance()

    def _give_up(self, problem: str) -> None:
        if not self._lost:
            self._lost = problem
            self._attempt = None
            self._actions.append(Lost(problem))
