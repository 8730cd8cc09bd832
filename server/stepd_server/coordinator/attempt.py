"""One attempt to gather a round: who is to contribute, and what has arrived where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from stepd_server.coordinator.vocabulary import Decision, Measures, Member, Sums


@dataclass
class Attempt:
    """Attributes:
    members: who contributes; fixed.
    arrived: by shard, whose contribution is whole there.
    sums: by shard, once all have arrived there.
    draft: the decision, if it lacks norms of tensors.
    measures: by shard, what these are made of.
    """

    members: tuple[Member, ...]
    arrived: defaultdict[int, set[Member]] = field(default_factory=lambda: defaultdict(set))
    sums: dict[int, Sums] = field(default_factory=dict)
    draft: Decision | None = None
    measures: dict[int, Measures] = field(default_factory=dict)

    def arrive(self, shard: int, member: Member) -> None:
        if member in self.members:
            self.arrived[shard].add(member)

    def gather(self, shard: int, sums: Sums) -> None:
        """Sums say that all have arrived there, too."""
        self.arrived[shard].update(self.members)
        self.sums.setdefault(shard, sums)

    @property
    def has_arrivals(self) -> bool:
        return any(self.arrived.values())

    def is_whole(self, member: Member, shards: Iterable[int]) -> bool:
        """Whether the member's contribution has arrived on all shards."""
        return all(member in self.arrived[shard] for shard in shards)

    def awaited(self, shards: Iterable[int]) -> tuple[Member, ...]:
        """Whose contribution is not whole on all shards."""
        return tuple(member for member in self.members if not self.is_whole(member, shards))

    def is_gathered(self, shards: Iterable[int]) -> bool:
        return all(shard in self.sums for shard in shards)

    def is_measured(self, shards: Iterable[int]) -> bool:
        return all(shard in self.measures for shard in shards)

    def __str__(self) -> str:
        arrived = [
            f"{member} on {' '.join(map(str, shards))}"
            for member in self.members
            if (shards := sorted(shard for shard, who in self.arrived.items() if member in who))
        ]
        text = f"of {' '.join(map(str, self.members))}; arrived {', '.join(arrived) or 'nothing'}"
        if self.draft:
            text += f"; measured on {' '.join(map(str, sorted(self.measures))) or 'none'}"
        return text
