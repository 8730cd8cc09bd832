"""What the rounds of a run are told, and what they answer: events in, actions out.

Any event may come late, twice or never; what does not fit the present round is passed over. Actions are to be carried
out in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from stepd.definitions import RunSpec
from stepd.policies import Clip, Reduce
from stepd_server.coordinator.vocabulary import (
    Decision,
    Measures,
    Member,
    Nonfinite,
    Offer,
    Refusal,
    RoundId,
    Selected,
    Standing,
    Sums,
    Timer,
)

# --- Events: members ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemberJoined:
    """A worker has joined. The same name with a higher incarnation takes the older one's place."""

    member: Member


@dataclass(frozen=True)
class MemberLeft:
    """A worker has left in good order.

    Attributes:
        contributed: its latest contribution that every shard has acknowledged; None: none.
    """

    member: Member
    contributed: RoundId | None = None


@dataclass(frozen=True)
class MemberLost:
    """A worker's lease has run out."""

    member: Member


# --- Events: shards -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arrived:
    """A shard has the whole contribution of a member."""

    shard: int
    id: RoundId
    member: Member


@dataclass(frozen=True)
class Earlier:
    """What a shard knows of the attempts of the round before this one. Told before anything else, if there is anything.

    Attributes:
        whole: whose contributions were whole there in one of them; None: it cannot know.
    """

    shard: int
    id: RoundId
    whole: tuple[Member, ...] | None


@dataclass(frozen=True)
class Offered:
    """A contribution waits on a shard for its turn. Told of each that waits whenever an attempt begins."""

    shard: int
    id: RoundId
    offer: Offer


@dataclass(frozen=True)
class Withdrawn:
    """A contribution that was offered, or selected, waits on a shard no more and is not whole: its stream has ended.
    Not in turn: one that has begun, and was given up."""

    shard: int
    id: RoundId
    member: Member
    sequence: int


@dataclass(frozen=True)
class Closed:
    """A shard begins no more contributions to an attempt.

    Attributes:
        begun: whose contributions have begun there.
    """

    shard: int
    id: RoundId
    begun: tuple[Member, ...]


@dataclass(frozen=True)
class Gathered:
    """A shard has all contributions, and this is what they add up to."""

    shard: int
    id: RoundId
    sums: Sums


@dataclass(frozen=True)
class Measured:
    """A shard has found its part of the norms of tensors."""

    shard: int
    id: RoundId
    measures: Measures


@dataclass(frozen=True)
class Finished:
    """A shard has carried out the decision of a round and stands at this step."""

    shard: int
    round: int
    step: int


@dataclass(frozen=True)
class ShardAway:
    """A shard does not answer, or its process was replaced by another."""

    shard: int


@dataclass(frozen=True)
class ShardBack:
    """A shard that was away answers again.

    Attributes:
        round: the next that it will gather.
        step: steps applied there.
        torn: it died in the middle of a step and cannot put its part together.
    """

    shard: int
    round: int
    step: int
    torn: bool = False


@dataclass(frozen=True)
class ShardLost:
    """A shard cannot go on with its part of the run.

    Attributes:
        problem: why, to be read after "shard 1".
    """

    shard: int
    problem: str


# --- Events: time -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeUp:
    """The time that an attempt asked for has passed."""

    id: RoundId
    timer: Timer


# --- Events: owner ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyChanged:
    """The owner has changed rates, schedule, clip or synchronisation. Parameters and groups stay what they are."""

    spec: RunSpec


@dataclass(frozen=True)
class LayoutChanged:
    """A group was added.

    Attributes:
        spec: of the run with it.
        layout: the version of the layout that has its parameters.
    """

    spec: RunSpec
    layout: int


@dataclass(frozen=True)
class StateLoaded:
    """The owner's state of the optimizer is held by every shard and is to be used from the next round on.

    Attributes:
        spec: with the hyperparameters that come with it.
    """

    spec: RunSpec


@dataclass(frozen=True)
class StateCommitted:
    """A shard uses the latest state that was loaded."""

    shard: int


Event: TypeAlias = (
    MemberJoined
    | MemberLeft
    | MemberLost
    | Arrived
    | Earlier
    | Offered
    | Withdrawn
    | Closed
    | TimeUp
    | Gathered
    | Measured
    | Finished
    | ShardAway
    | ShardBack
    | ShardLost
    | PolicyChanged
    | LayoutChanged
    | StateLoaded
    | StateCommitted
)


# --- Actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordAttempt:
    """Write down that this attempt is about to be told, so that no later coordinator gives its number away again.

    Attributes:
        left_out: members that were left out of the round, and may have been told so.
        nonfinite: why.
    """

    id: RoundId
    left_out: tuple[Member, ...] = ()
    nonfinite: tuple[Nonfinite, ...] = ()

    def __str__(self) -> str:
        return f"record attempt {self.id}" + (f" without {_listed(self.left_out)}" if self.left_out else "")


@dataclass(frozen=True)
class Gather:
    """Have shards gather; drops what they have of an earlier attempt."""

    shards: tuple[int, ...]
    id: RoundId
    members: tuple[Member, ...]
    clip: Clip | None
    reduction: Reduce
    deterministic: bool
    # Members whose contribution to an earlier attempt was left out: what they send is answered with that.
    quarantined: tuple[Member, ...] = ()
    # Version of the layout.
    layout: int = 0
    # Contributions are taken in turn: no members; what is taken is selected, now or later.
    in_turn: bool = False
    selected: Selected | None = None

    def __str__(self) -> str:
        layout = f", layout {self.layout}" if self.layout else ""
        whom = f"in turn, {self.selected or 'nobody yet'}" if self.in_turn else f"of {_listed(self.members)}"
        return f"gather {self.id} {whom} on {_listed(self.shards)}{layout}"


@dataclass(frozen=True)
class SetTimer:
    """Say TimeUp when so much time has passed, unless the attempt is over by then."""

    id: RoundId
    timer: Timer
    seconds: float

    def __str__(self) -> str:
        return f"{self.timer.value} of {self.id}: {self.seconds:g} s"


@dataclass(frozen=True)
class Close:
    """Have shards begin no more contributions to an attempt, and say which have begun. May be repeated."""

    shards: tuple[int, ...]
    id: RoundId

    def __str__(self) -> str:
        return f"close {self.id} on {_listed(self.shards)}"


@dataclass(frozen=True)
class Select:
    """Tell shards which contributions an attempt takes, and which no attempt does. May be repeated, and told with more.

    Attributes:
        selected: all that it takes; empty: not known yet.
        refused: all that have been refused in this attempt.
    """

    shards: tuple[int, ...]
    id: RoundId
    selected: tuple[Selected, ...]
    refused: tuple[Refusal, ...] = ()

    def __str__(self) -> str:
        refused = f"; {', '.join(map(str, self.refused))}" if self.refused else ""
        return f"select for {self.id} {_listed(self.selected) or 'nobody yet'} on {_listed(self.shards)}{refused}"


@dataclass(frozen=True)
class Measure:
    """Have shards find the norms of tensors that a decision lacks. May be repeated."""

    shards: tuple[int, ...]
    draft: Decision

    def __str__(self) -> str:
        return f"measure {self.draft.id} on {_listed(self.shards)}"


@dataclass(frozen=True)
class Record:
    """Write the decision down. Always before any shard hears of it.

    Attributes:
        standings: where contributions are taken in turn: what has been counted of each member, this included.
    """

    decision: Decision
    standings: tuple[tuple[Member, Standing], ...] = ()

    def __str__(self) -> str:
        return f"record {self.decision}"


@dataclass(frozen=True)
class Finish:
    """Have shards carry a decision out. May be repeated."""

    shards: tuple[int, ...]
    decision: Decision

    def __str__(self) -> str:
        return f"finish {self.decision.id} on {_listed(self.shards)}"


@dataclass(frozen=True)
class Commit:
    """Have shards use the latest state that was loaded, before this round. May be repeated."""

    shards: tuple[int, ...]
    round: int

    def __str__(self) -> str:
        return f"commit the state before round {self.round} on {_listed(self.shards)}"


@dataclass(frozen=True)
class Lost:
    """The run cannot go on."""

    problem: str

    def __str__(self) -> str:
        return f"lost: {self.problem}"


Action: TypeAlias = RecordAttempt | Gather | SetTimer | Close | Select | Measure | Record | Finish | Commit | Lost


def _listed(items: tuple[object, ...]) -> str:
    return " ".join(map(str, items))
