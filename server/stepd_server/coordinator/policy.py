"""Who must contribute to a round, and when there are enough of them: the seam between rounds and synchronisation.

Rounds ask three questions and know nothing else of a policy. The other policies of the design fit the same questions:

- quorum: `opens` as here; rounds start a timer when `arrived` has reached K (Arrived events are kept by shard for it),
  and the timer's event closes the attempt with whoever is whole on every shard;
- asynchronous: a round of one contributor, the next in line of those who offer one;
- bounded staleness: a round of those who have not run ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stepd.policies import Sync
from stepd_server.coordinator.vocabulary import Member


class Policy(Protocol):
    def missing(self, members: int) -> int:
        """How many more members a round needs; 0: it may open."""

    def has_room(self, members: int) -> bool:
        """Whether one more may join when there are so many."""

    def contributors(self, members: Sequence[Member]) -> tuple[Member, ...]:
        """Who must contribute, in the order in which deterministic runs add."""


@dataclass(frozen=True)
class Synchronous:
    """One contribution of every member.

    Attributes:
        workers: exactly so many members. None: whoever has joined, at least one.
    """

    workers: int | None

    def missing(self, members: int) -> int:
        return max(0, (self.workers or 1) - members)

    def has_room(self, members: int) -> bool:
        return self.workers is None or members < self.workers

    def contributors(self, members: Sequence[Member]) -> tuple[Member, ...]:
        return tuple(sorted(members, key=lambda member: (member.rank, member.worker)))


def policy_of(sync: Sync) -> Policy:
    return Synchronous(sync.workers)
