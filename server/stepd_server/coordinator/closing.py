"""How a round is closed that awaits a quorum only. Pure.

    open       contributions arrive
    grace      a quorum has arrived; latecomers have the grace
    closing    shards begin no more contributions, and say which have begun
    closed     those that have begun anywhere are the round's; shards are told which these are

So a contribution is in the round on all shards or on none, and nothing that was added has to be dropped. What has begun
may be slow to end: it has STRAGGLERS_S_MIN or the grace, if that is longer, and then the round starts over without it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stepd.limits import STRAGGLERS_S_MIN
from stepd_server.coordinator.policy import Policy
from stepd_server.coordinator.vocabulary import Member


class Stage(enum.Enum):
    OPEN = "open"
    GRACE = "grace"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass
class Closing:
    """Attributes:
    quorum: how many contributions close the round.
    grace: seconds.
    stage: how far it is.
    begun: by shard, whose contributions have begun there.
    """

    quorum: int
    grace: float
    stage: Stage = Stage.OPEN
    begun: dict[int, frozenset[Member]] = field(default_factory=dict)

    @property
    def stragglers(self) -> float:
        """Seconds that contributions have to end which had begun when the round was closed."""
        return max(self.grace, STRAGGLERS_S_MIN)

    def take_in(self, shard: int, begun: Iterable[Member]) -> None:
        self.begun[shard] = frozenset(begun)

    def begun_anywhere(self, shards: Iterable[int]) -> frozenset[Member] | None:
        """Whose contributions are the round's; None until all shards have said which have begun."""
        if any(shard not in self.begun for shard in shards):
            return None
        return frozenset[Member]().union(*self.begun.values())


def closing_of(policy: Policy, contributors: Sequence[Member]) -> Closing | None:
    """How a round of these is closed; None if it awaits all of them."""
    quorum = policy.quorum(len(contributors))
    return Closing(quorum, policy.grace) if quorum else None
