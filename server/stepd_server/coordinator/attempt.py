"""One attempt to gather a round: who is to contribute, and what has arrived where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from stepd_server.coordinator.closing import Closing, Stage
from stepd_server.coordinator.vocabulary import Decision, Measures, Member, Refusal, Selected, Sums


@dataclass
class Attempt:
    """Attributes:
    members: who contributes. Fixed, but for what `closing` and `selected` say.
    closing: how far it is closed; None if it awaits all members.
    in_turn: it takes one contribution of those that wait on the shards, and has no members until that is selected.
    selected: which it takes, if it takes one in turn.
    refused: by member, what it does not take, if it takes one in turn.
    told: what of this shards have been told.
    late: members that were asked and are not awaited.
    gone: members that will send nothing more.
    earlier: by shard, whose contribution was whole there in an earlier attempt; None: it cannot know.
    arrived: by member, the shards on which its contribution is whole.
    whole: members whose contribution is whole on all shards.
    sums: by shard, once all have arrived there.
    draft: the decision, if it lacks norms of tensors.
    measures: by shard, what these are made of.
    """

    members: tuple[Member, ...]
    closing: Closing | None = None
    in_turn: bool = False
    selected: Selected | None = None
    refused: dict[Member, Refusal] = field(default_factory=dict)
    told: dict[Member, Refusal] = field(default_factory=dict)
    late: tuple[Member, ...] = ()
    gone: set[Member] = field(default_factory=set)
    earlier: dict[int, tuple[Member, ...] | None] = field(default_factory=dict)
    arrived: defaultdict[Member, set[int]] = field(default_factory=lambda: defaultdict(set))
    whole: set[Member] = field(default_factory=set)
    sums: dict[int, Sums] = field(default_factory=dict)
    draft: Decision | None = None
    measures: dict[int, Measures] = field(default_factory=dict)

    def select(self, selected: Selected) -> None:
        self.selected, self.members = selected, (selected.member,)

    def close(self, members: Iterable[Member]) -> None:
        """These are the round's."""
        final = set(members)
        self.late = tuple(member for member in self.members if member not in final)
        self.members = tuple(member for member in self.members if member in final)

    def arrive(self, shard: int, member: Member, shards: Iterable[int]) -> None:
        if member in self.members:
            self.arrived[member].add(shard)
            if self.arrived[member].issuperset(shards):
                self.whole.add(member)

    def gather(self, shard: int, sums: Sums, shards: Iterable[int]) -> None:
        """Sums say that all have arrived there, too."""
        for member in self.members:
            self.arrive(shard, member, shards)
        self.sums.setdefault(shard, sums)

    def promised(self, members: Iterable[Member], shards: Collection[int]) -> set[Member]:
        """Of these, who may have been told that all shards have its contribution, before the round started over."""
        had = [self.earlier.get(shard, ()) for shard in shards]
        return {member for member in members if all(whole is None or member in whole for whole in had)}

    @property
    def taken(self) -> tuple[Selected, ...]:
        """What it takes in turn, as far as that is known."""
        return (self.selected,) if self.selected else ()

    @property
    def has_arrivals(self) -> bool:
        return any(self.arrived.values())

    def has_arrived(self, member: Member, shard: int) -> bool:
        return shard in self.arrived[member]

    @property
    def lacking(self) -> tuple[Member, ...]:
        """Members whose contribution has not arrived on all shards."""
        return tuple(member for member in self.members if member not in self.whole)

    def is_gathered(self, shards: Iterable[int]) -> bool:
        return all(shard in self.sums for shard in shards)

    def is_measured(self, shards: Iterable[int]) -> bool:
        return all(shard in self.measures for shard in shards)

    def __str__(self) -> str:
        arrived = [
            f"{member} on {' '.join(map(str, shards))}"
            for member in self.members
            if (shards := sorted(self.arrived[member]))
        ]
        text = f"in turn, {self.selected or 'nobody yet'}" if self.in_turn else f"of {' '.join(map(str, self.members))}"
        text += f"; arrived {', '.join(arrived) or 'nothing'}"
        if self.closing and self.closing.stage is not Stage.OPEN:
            text += f"; {self.closing.stage.value}"
        if self.late:
            text += f"; late {' '.join(map(str, self.late))}"
        if self.draft:
            text += f"; measured on {' '.join(map(str, sorted(self.measures))) or 'none'}"
        return text
