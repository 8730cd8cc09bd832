"""What the rounds of a run are told, and what they answer: events in, actions out.

Any event may come late, twice or never; what does not fit the present round is passed over. Actions are to be carried
out in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from stepd.definitions import RunSpec
from stepd.policies import Clip, Reduce
from stepd_server.coordinator.vocabulary import Decision, Measures, Member, Nonfinite, RoundId, Sums

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

    def __str__(self) -> str:
        layout = f", layout {self.layout}" if self.layout else ""
        return f"gather {self.id} of {_listed(self.members)} on {_listed(self.shards)}{layout}"


@dataclass(frozen=True)
class Measure:
    """Have shards find the norms of tensors that a decision lacks. May be repeated."""

    shards: tuple[int, ...]
    draft: Decision

    def __str__(self) -> str:
        return f"measure {self.draft.id} on {_listed(self.shards)}"


@dataclass(frozen=True)
class Record:
    """Write the decision down. Always before any shard hears of it."""

    decision: Decision

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


Action: TypeAlias = RecordAttempt | Gather | Measure | Record | Finish | Commit | Lost


def _listed(items: tuple[object, ...]) -> str:
    return " ".join(map(str, items))
