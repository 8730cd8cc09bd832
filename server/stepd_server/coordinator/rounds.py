"""The rounds of a run as a state machine: events in, actions out. No sockets, threads, tasks or clocks.

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

With a quorum, a round may be closed before all have contributed (closing.py); who is lost before that is done without
as long as the others can make the quorum.

Where contributions are taken in turn, a round takes one. They wait on the shards; an attempt has no members until one
of those that wait on every shard is selected (line.py, policy.py). If that one breaks off, the attempt is over, and the
next one takes another's: nobody waits for a worker that does not send.
"""

from __future__ import annotations

from stepd.definitions import RunSpec
from stepd_server.coordinator import decision as decisions
from stepd_server.coordinator import turns
from stepd_server.coordinator.attempt import Attempt
from stepd_server.coordinator.closing import Stage, closing_of
from stepd_server.coordinator.events import (
    Action,
    Arrived,
    Closed,
    Commit,
    Earlier,
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
    Offered,
    PolicyChanged,
    Record,
    RecordAttempt,
    Select,
    ShardAway,
    ShardBack,
    ShardLost,
    StateCommitted,
    StateLoaded,
    TimeUp,
    Withdrawn,
)
from stepd_server.coordinator.policy import Policy, policy_of
from stepd_server.coordinator.quorum import RoundsWithQuorum
from stepd_server.coordinator.vocabulary import Decision, Member, RoundId, by_rank


class Rounds(RoundsWithQuorum):
    """The rounds of one run."""

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
            case Arrived() | Earlier() | Gathered() | Measured() | Closed() | TimeUp() | Offered() | Withdrawn():
                self._take_in(event)
            case Finished():
                self._finish(event)
            case ShardAway(shard):
                self._away.add(shard)
                self._line.forget(shard)
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
                self._line.clear()
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
            self._forget(older)
        if self._attempt and self._may_start_over_for_newcomer(self._attempt, older):
            self._start_over()
        self._line.join(member)
        # Where contributions are taken in turn, a round takes whoever comes.
        self._since[member] = self.id.round + (self._attempt is not None and not self._attempt.in_turn)

    def _may_start_over_for_newcomer(self, attempt: Attempt, older: Member | None) -> bool:
        if older in attempt.members:
            return not self._can_do_without(attempt, older)  # it will not contribute under its old incarnation any more
        if attempt.in_turn or attempt.has_arrivals:
            return False
        return all(member in self._since for member in attempt.members)

    def _leave(self, member: Member, contributed: RoundId | None) -> None:
        # The worker has receipts of every shard: they may have overtaken the shards' word to us.
        if member in self._since and contributed != self.id:
            self._lose(member)
        self._forget(member)

    def _lose(self, member: Member) -> None:
        # Also one that has left: it may have claimed a contribution that never arrived.
        self._forget(member)
        attempt = self._attempt
        if attempt is None:
            return
        if member in attempt.members and member not in attempt.whole:
            if not self._can_do_without(attempt, member):
                self._start_over()
        elif attempt.in_turn and not attempt.members and self._policy.missing(len(self._since)):
            self._start_over()

    def _forget(self, member: Member) -> None:
        self._since.pop(member, None)
        self._line.drop(member)

    def _take_in(self, event: Arrived | Earlier | Gathered | Measured | Closed | TimeUp | Offered | Withdrawn) -> None:
        attempt = self._attempt
        if attempt is None or event.id != self.id:
            return
        match event:
            case Arrived(shard, _, member):
                attempt.arrive(shard, member, self._all)
            case Earlier(shard, _, whole):
                attempt.earlier[shard] = whole
            case Gathered(shard, _, sums):
                attempt.gather(shard, sums, self._all)
            case Measured(shard, _, measures):
                attempt.measures[shard] = measures
            case Closed(shard, _, begun):
                self._close(attempt, shard, begun)
            case TimeUp(_, timer):
                self._time_up(attempt, timer)
            case Offered(shard, _, offer) if attempt.in_turn:
                if turns.offer(attempt, self._line, self._policy, shard, offer, self.step):
                    self._start_over()
            case Withdrawn():
                self._withdraw(attempt, event)

    def _withdraw(self, attempt: Attempt, event: Withdrawn) -> None:
        if not attempt.in_turn:
            given_up = event.member in attempt.members
        else:
            self._line.withdraw(event.shard, event.member, event.sequence)
            selected = attempt.selected is not None and attempt.selected[:2] == (event.member, event.sequence)
            given_up = selected and not attempt.has_arrived(event.member, event.shard)
        if given_up:
            self._start_over()

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
        elif self.last and stands <= (self.last.id.round, self.last.step_before):
            # What it says may be older than what it has answered since. It knows best whether it has still to carry the
            # decision out, has done so, or cannot.
            self._unfinished.add(event.shard)
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
        summed = decisions.what_is_summed(self._spec, self._policy)
        last, policy, self._spec = self.last_together(spec.sync), policy_of(spec.sync), spec
        if last is not None:
            self._policy, self._then = last.policy, policy
        else:
            self._then = None
            self._go_by(policy)
        attempt = self._attempt
        if attempt is None:
            return
        takes_part = {*attempt.members, *attempt.late, *self._left_out, *self._slow}
        enough = not self._policy.missing(len(self._since) if attempt.in_turn else len(takes_part))
        # A changed limit of the norm, like a rate, needs no new sums: the decision uses the latest.
        if summed != decisions.what_is_summed(spec, self._policy) or not enough:
            self._start_over()
        elif attempt.closing is None or attempt.closing.stage is Stage.OPEN:
            attempt.closing = closing_of(self._policy, attempt.members)

    def _go_by(self, policy: Policy) -> None:
        """From now on."""
        before, self._policy = self._policy, policy
        if type(before) is not type(policy):
            self._line.level()
        if before.in_turn != policy.in_turn:
            self._line.clear()

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
            elif self._attempt.in_turn:
                self._take_turn(self._attempt)
            elif self._attempt.closing:
                self._look_for_quorum(self._attempt, self._attempt.closing)
            return
        if self._policy.in_turn:
            if not self._policy.missing(len(self._since)):
                self._take_turn(Attempt((), in_turn=True))
            return
        present = [member for member, first in self._since.items() if first <= self.id.round]
        contributors = self._policy.contributors([m for m in present if m not in self._left_out | self._slow])
        enough = not self._policy.missing(len(self._since))
        # Where there are enough for the next round only, a round with a quorum is of those who are left in it: the next
        # need not wait for what they have been told is there. Without one it would, and they send it for that.
        short = self._policy.missing(len(present)) and not (enough and self._policy.quorum(len(present)))
        if contributors and not short:
            self._gather(Attempt(contributors, closing_of(self._policy, contributors)))
        elif enough and not self._unfinished:
            # Nobody is left in this round, or too few.
            self._decide(decisions.nobody_left(self._spec), ())

    def _gather(self, attempt: Attempt) -> None:
        self._attempt = attempt
        left_out = by_rank(self._left_out)
        if self.id.attempt:
            self._actions.append(RecordAttempt(self.id, left_out, self._nonfinite))
        members = () if attempt.in_turn else attempt.members
        how = (self._spec.clip, self._policy.reduce, self._policy.deterministic, left_out, self._layout)
        self._actions.append(Gather(self._all, self.id, members, *how, attempt.in_turn, attempt.selected))

    def _start_over(self) -> None:
        """The attempt is over, if there is one. Who asks before the next one begins is told its number already."""
        if self._attempt is not None:
            self._attempt = None
            self.id = RoundId(self.id.round, self.id.attempt + 1)

    def _judge(self, attempt: Attempt) -> None:
        sums = [attempt.sums[shard] for shard in self._all]
        if len({part.sequences for part in sums}) > 1:
            # A member has given up what some shard had added, and sent others what comes after it.
            self._start_over()
            self._advance()
            return
        if self._recalls(attempt):
            self._advance()
            return
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
            quarantined=by_rank(self._left_out),
            counted=self._attempt.taken if self._attempt else (),
            late=by_rank({*(self._attempt.late if self._attempt else ()), *self._slow}),
        )
        if self._attempt is not None and decisions.lacks_norms(self._spec, decision):
            # Rates and factors stay what they are now, also if the owner changes them meanwhile.
            self._attempt.draft = decision
            self._actions.append(Measure(self._all, decision))
            return
        self._conclude(decision)

    def _conclude(self, decision: Decision) -> None:
        for selected in decision.counted:
            self._line.count(selected)
        if self._then is not None:
            policy, self._then = self._then, None
            self._go_by(policy)
        standings = self._line.recorded(in_turn=self._policy.in_turn)
        self._actions += [Record(decision, standings), Finish(self._all, decision)]
        self.last, self.step = decision, decision.step
        self.id = RoundId(self.id.round + 1, 0)
        self._attempt = None
        self._nonfinite, self._left_out, self._slow = (), frozenset(), frozenset()
        self._unfinished = set(self._all)
        self._advance()

    # --- In turn --------------------------------------------------------------------------------------------------

    def _take_turn(self, attempt: Attempt) -> None:
        """Select what is next in line, if nothing is selected; tell shards what they do not know yet."""
        known = attempt.selected
        if known is None:
            turns.choose(attempt, self._line, self._policy, self._all, self.step)
        if self._attempt is None:
            self._gather(attempt)
            known = attempt.selected
        if attempt.selected != known or attempt.refused != attempt.told:
            attempt.told = attempt.refused.copy()
            self._actions.append(Select(self._all, self.id, attempt.taken, tuple(attempt.refused.values())))

    def _give_up(self, problem: str) -> None:
        if not self._lost:
            self._lost = problem
            self._attempt = None
            self._actions.append(Lost(problem))
