"""Who contributes to a round, and when there are enough of them: the seam between rounds and synchronisation. Pure.

Either a round asks all members at once (`contributors`), and may be closed before all have arrived (`quorum`); or
contributions are taken in turn, a round each: they wait on the shards, and one of those that wait is chosen
(`choose`) or, if it is too old, refused (`is_stale`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from stepd.limits import STRAGGLERS_S_MIN
from stepd.policies import AnySync, Async, BoundedStaleness, Damping, Reduce, Sync
from stepd_server.coordinator.vocabulary import Member, Offer, Selected, Standing, by_rank


class Policy(Protocol):
    """Attributes:
    in_turn: contributions are taken in turn.
    reduce: how those of a round become one.
    deterministic: they are added in the order of ranks.
    """

    @property
    def in_turn(self) -> bool: ...
    @property
    def reduce(self) -> Reduce: ...
    @property
    def deterministic(self) -> bool: ...

    def missing(self, members: int) -> int:
        """How many more members a round needs; 0: it may open."""

    def has_room(self, members: int) -> bool:
        """Whether one more may join when there are so many."""

    def contributors(self, members: Sequence[Member]) -> tuple[Member, ...]:
        """Whom a round asks, in the order in which deterministic runs add; nobody where they take turns."""

    def quorum(self, contributors: int) -> int | None:
        """How many contributions of so many close the round. None: all of them."""

    @property
    def grace(self) -> float:
        """Seconds that latecomers have when there is a quorum."""

    def is_stale(self, offer: Offer, step: int) -> bool:
        """Whether a contribution that waits is not taken, now or later, as `step` steps have been applied."""

    def choose(self, offers: Sequence[Offer], standings: Mapping[Member, Standing], step: int) -> Selected | None:
        """Whose turn it is, of those that wait, in the order in which they came. None: nobody's for now."""


@dataclass(frozen=True)
class Synchronous:
    """One contribution of every member, or of a quorum of them.

    Attributes:
        workers: exactly so many members. None: whoever has joined, at least one.
        wanted: the quorum. None: all.
    """

    workers: int | None
    wanted: int | None = None
    grace: float = 0.0
    reduce: Reduce = "mean"
    deterministic: bool = False
    in_turn: ClassVar[bool] = False

    def missing(self, members: int) -> int:
        # What a quorum is for is to do without the others, be they slow or not there.
        return max(0, (self.wanted or self.workers or 1) - members)

    def has_room(self, members: int) -> bool:
        return self.workers is None or members < self.workers

    def contributors(self, members: Sequence[Member]) -> tuple[Member, ...]:
        return by_rank(members)

    def quorum(self, contributors: int) -> int | None:
        # Fewer than the quorum are asked when some have been left out of the round: then it is of the others.
        return self.wanted and min(self.wanted, contributors)

    def is_stale(self, offer: Offer, step: int) -> bool:
        return False

    def choose(self, offers: Sequence[Offer], standings: Mapping[Member, Standing], step: int) -> Selected | None:
        return None


class InTurn:
    """What policies have in common under which every contribution is a round of its own."""

    in_turn: ClassVar[bool] = True
    reduce: ClassVar[Reduce] = "sum"
    deterministic: ClassVar[bool] = False
    grace: ClassVar[float] = 0.0

    def contributors(self, members: Sequence[Member]) -> tuple[Member, ...]:
        return ()

    def quorum(self, contributors: int) -> int | None:
        return None


@dataclass(frozen=True)
class Asynchronous(InTurn):
    """Whoever comes is taken.

    Attributes:
        max_staleness: contributions that are staler are refused. None: no limit.
        damping: what is done about staleness.
    """

    max_staleness: int | None = None
    damping: Damping | None = None

    def missing(self, members: int) -> int:
        return max(0, 1 - members)

    def has_room(self, members: int) -> bool:
        return True

    def is_stale(self, offer: Offer, step: int) -> bool:
        return self.max_staleness is not None and step - offer.based_on > self.max_staleness

    def choose(self, offers: Sequence[Offer], standings: Mapping[Member, Standing], step: int) -> Selected | None:
        if not offers:
            return None
        member, sequence, based_on = offers[0]
        staleness = max(0, step - based_on)
        return Selected(member, sequence, 1 / (1 + staleness) if self.damping == "inverse" else 1.0)


@dataclass(frozen=True)
class Bounded(InTurn):
    """Whoever comes is taken, unless it has had too many turns more than the member that has had the fewest.

    Attributes:
        workers: exactly so many members.
        staleness: that many turns more, but at least one.
    """

    workers: int
    staleness: int

    def missing(self, members: int) -> int:
        return max(0, self.workers - members)

    def has_room(self, members: int) -> bool:
        return members < self.workers

    def is_stale(self, offer: Offer, step: int) -> bool:
        return False

    def choose(self, offers: Sequence[Offer], standings: Mapping[Member, Standing], step: int) -> Selected | None:
        slowest = min((standing.turns for standing in standings.values()), default=0)
        for offer in offers:
            if standings[offer.member].turns < slowest + max(self.staleness, 1):
                return Selected(offer.member, offer.sequence)
        return None


class LastTogether(NamedTuple):
    """The last round that takes contributions together, where the policy has them taken in turn: it was under way when
    the policy changed, and shards may have said that they hold what was sent for it. What takes them in turn may find
    that too old.

    Attributes:
        round: its number.
        reduce: how its contributions become one.
    """

    round: int
    reduce: Reduce

    @property
    def policy(self) -> Synchronous:
        """It is of whoever is there, so that nobody waits for the next one for long."""
        return Synchronous(None, 1, STRAGGLERS_S_MIN, self.reduce)


def policy_of(sync: AnySync) -> Policy:
    match sync:
        case Sync():
            return Synchronous(sync.workers, sync.quorum, sync.grace, sync.reduce, sync.deterministic)
        case Async():
            return Asynchronous(sync.max_staleness, sync.damping)
        case BoundedStaleness():
            return Bounded(sync.workers, sync.staleness)
