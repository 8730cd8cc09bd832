"""Where the rounds of one run stand, as others see it. What changes it is in rounds.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from stepd.definitions import RunSpec
from stepd.policies import AnySync
from stepd_server.coordinator import decision as decisions
from stepd_server.coordinator.attempt import Attempt
from stepd_server.coordinator.events import Action
from stepd_server.coordinator.line import Line
from stepd_server.coordinator.policy import LastTogether, Policy, policy_of
from stepd_server.coordinator.vocabulary import Decision, Member, Nonfinite, Phase, RoundId, Standing


class RoundsStanding:
    """Attributes:
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
        standings: Mapping[Member, Standing] | None = None,
        last_together: LastTogether | None = None,
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
            standings: what has been counted of members, as recorded with the last decision.
            last_together: as `last_together` said when the spec was recorded.
        """
        self._all: Final = tuple(range(shards))
        self._spec = spec
        self._layout = layout
        self.last = last
        self.step = last.step if last else 0
        self.id = RoundId(last.id.round + 1 if last else 0, attempt)
        # Of the round in hand; and of the next, if that is another.
        self._policy: Policy = policy_of(spec.sync)
        self._then: Policy | None = None
        if last_together is not None and last_together.round == self.id.round:
            self._policy, self._then = last_together.policy, self._policy
        # Members, each with the first round that takes its contribution.
        self._since: dict[Member, int] = dict(members or {})
        self._line = Line(self._since, standings or {})
        self._attempt: Attempt | None = None
        # Of this round, over its attempts: whose values are not finite, who is left out for it, and who for being slow.
        self._nonfinite: tuple[Nonfinite, ...] = tuple(nonfinite)
        self._left_out: frozenset[Member] = frozenset(left_out)
        self._slow: frozenset[Member] = frozenset()
        # Shards that have yet to carry out the last decision, as far as is known, and shards that do not answer.
        self._unfinished: set[int] = set(self._all) if last else set()
        self._away: set[int] = set(away)
        # Shards that, as far as is known, have yet to use the latest state that was loaded.
        self._uncommitted: set[int] = set(self._all) if state_loaded else set()
        self._lost = ""
        self._actions: list[Action] = []

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

    def last_together(self, sync: AnySync) -> LastTogether | None:
        """To be recorded with this policy before it is told: the round in hand, if it is the last to take contributions
        together."""
        begun = self._attempt is not None or self.id.attempt > 0
        if self._policy.in_turn or not policy_of(sync).in_turn or not begun:
            return None
        return LastTogether(self.id.round, self._policy.reduce)

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
        first = self.id.round + 1 if member in self._left_out | self._slow else self._since.get(member, 0)
        return self.id if first <= self.id.round else RoundId(first, 0)

    @property
    def awaited(self) -> tuple[Member, ...]:
        """Whose contribution is asked for and not whole on every shard; where those that wait must not go ahead of the
        slowest, the slowest."""
        attempt = self._attempt
        if attempt is None:
            return ()
        return attempt.lacking if not attempt.in_turn or attempt.selected else self._line.holding_up(self._all)

    def counted(self, member: Member) -> int:
        """The sequence of the latest of the member's contributions that counts, taken in turn; 0: none."""
        return self._line.standings.get(member, Standing()).sequence

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
        if self._slow:
            parts.append("too slow " + " ".join(map(str, sorted(self._slow))))
        if self._unfinished:
            parts.append(f"unfinished on {' '.join(map(str, sorted(self._unfinished)))}")
        if self.problem:
            parts.append(self.problem)
        return "; ".join(parts)
