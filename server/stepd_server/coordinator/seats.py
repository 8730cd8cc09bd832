"""A member's place in a run, and what of it outlives the coordinator's process. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import NamedTuple

from stepd_server.coordinator.vocabulary import Member


class Replaced(NamedTuple):
    """A membership whose place was taken over.

    Attributes:
        incarnation: its own.
        request_id: of the call that made it; repeated, it must not take the place back.
    """

    incarnation: int
    request_id: str


@dataclass
class Seat:
    """A member's place.

    Attributes:
        member: who has it.
        lease: seconds that it lasts from each renewal.
        heard: when the member was last heard of, on the steady clock.
        request_id: of the call that made it.
        joined_at: seconds since the epoch.
        claimed: its worker asked for the rank and gave no name: the rank is what it is known by.
        first_round: the first that takes its contribution.
        replaced: memberships that had the place before, latest first.
        metrics: the latest values reported.
        observed: how many values schedules were told.
    """

    member: Member
    lease: float
    heard: float
    request_id: str
    joined_at: float
    claimed: bool = False
    first_round: int = 0
    replaced: tuple[Replaced, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    observed: int = 0

    @property
    def expires(self) -> float:
        """When it ends unless renewed."""
        return self.heard + self.lease

    def to_bytes(self) -> bytes:
        """What a later coordinator has to know. (How far reports have been observed is kept with what they changed.)"""
        return json.dumps(
            {
                "member": self.member,
                "lease": self.lease,
                "request_id": self.request_id,
                "joined_at": self.joined_at,
                "claimed": self.claimed,
                "first_round": self.first_round,
                "replaced": self.replaced,
            }
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes, now: float) -> Seat:
        """A seat with its whole lease before it."""
        kept = json.loads(data)
        kept["member"] = Member(*kept["member"])
        kept["replaced"] = tuple(Replaced(*one) for one in kept["replaced"])
        return cls(heard=now, **kept)


@dataclass(frozen=True)
class Gone:
    """A place that is empty.

    Attributes:
        member: who had it.
        at: since when, on the steady clock.
        why: to be read after the member's name.
    """

    member: Member
    at: float
    why: str
