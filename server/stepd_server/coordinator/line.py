"""Where contributions are taken in turn: which of them wait on the shards, and what has been counted of each member.

A contribution is in line when it waits on every shard: then its worker reaches all of them. It keeps its place while it
is gone from some shard, as when a connection is made anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stepd_server.coordinator.vocabulary import Member, Offer, Receipt, Refusal, Selected, Standing, by_rank


@dataclass
class _Waiting:
    offer: Offer
    shards: set[int] = field(default_factory=set)


class Line:
    """Attributes:
    standings: by member.
    """

    def __init__(self, members: Iterable[Member], standings: Mapping[Member, Standing]) -> None:
        """
        Args:
            members: of the run, in the order in which they joined.
            standings: as recorded with the last decision; who is not there has joined since.
        """
        members = list(members)
        self.standings = {member: standings[member] for member in members if member in standings}
        for member in members:
            if member not in standings:
                self.join(member)
        # In the order in which they came.
        self._waiting: dict[Member, _Waiting] = {}

    # --- Members --------------------------------------------------------------------------------------------------

    def join(self, member: Member) -> None:
        """A newcomer has had as many turns as the slowest: nobody waits for it to catch up."""
        slowest = min((standing.turns for standing in self.standings.values()), default=0)
        self.standings[member] = Standing(0, slowest)

    def drop(self, member: Member) -> None:
        self.standings.pop(member, None)
        self._waiting.pop(member, None)

    # --- Shards ---------------------------------------------------------------------------------------------------

    def offer(self, shard: int, offer: Offer) -> None:
        """A contribution waits on a shard. A later one of the same member says that an earlier one was given up."""
        waiting = self._waiting.get(offer.member)
        if waiting is None or waiting.offer.sequence < offer.sequence:
            waiting = self._waiting[offer.member] = _Waiting(offer)
        if waiting.offer.sequence == offer.sequence:
            waiting.shards.add(shard)

    def withdraw(self, shard: int, member: Member, sequence: int) -> None:
        waiting = self._waiting.get(member)
        if waiting is not None and waiting.offer.sequence == sequence:
            waiting.shards.discard(shard)

    def forget(self, shard: int) -> None:
        """The shard has died, and what waited there has ended."""
        for waiting in self._waiting.values():
            waiting.shards.discard(shard)

    def clear(self) -> None:
        """Nothing waits any more as it did."""
        self._waiting.clear()

    # --- Turns ----------------------------------------------------------------------------------------------------

    def refusal(self, offer: Offer) -> Refusal | None:
        """Why a contribution is not taken under any policy."""
        standing = self.standings.get(offer.member)
        if standing is None:
            return Refusal(offer.member, offer.sequence, Receipt.LATE)
        elif offer.sequence <= standing.sequence:
            return Refusal(offer.member, standing.sequence, Receipt.DUPLICATE)
        return None

    def offers(self, shards: Iterable[int]) -> list[Offer]:
        """What waits on all of these shards, in order."""
        everywhere = set(shards)
        return [waiting.offer for waiting in self._waiting.values() if waiting.shards >= everywhere]

    def holding_up(self, shards: Iterable[int]) -> tuple[Member, ...]:
        """Of whom those that wait must not go further ahead: who has had the fewest turns. Nobody if nothing waits."""
        if not self.offers(shards):
            return ()
        slowest = min((standing.turns for standing in self.standings.values()), default=0)
        return by_rank(member for member, standing in self.standings.items() if standing.turns == slowest)

    def take_out(self, member: Member) -> None:
        """Its contribution was selected or refused: it does not wait any more."""
        self._waiting.pop(member, None)

    def count(self, selected: Selected) -> None:
        """The round that took a contribution is decided."""
        if standing := self.standings.get(selected.member):
            self.standings[selected.member] = Standing(selected.sequence, standing.turns + 1)

    def level(self) -> None:
        """Another policy: turns are counted anew."""
        self.standings = {member: Standing(standing.sequence) for member, standing in self.standings.items()}

    def recorded(self, *, in_turn: bool) -> tuple[tuple[Member, Standing], ...]:
        """What the next coordinator has to know.

        Args:
            in_turn: contributions are taken in turn; where they are not, who has never had a turn need not be named.
        """
        return tuple(item for item in self.standings.items() if in_turn or item[1] != Standing())
