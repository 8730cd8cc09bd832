"""The words of a round as frozen values: proto/stepd/v1/round.proto without the wire.

`str()` of each is what transcripts and logs show.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from stepd_server.exact import ExactSum


class Member(NamedTuple):
    """One join of one worker. The same name with another incarnation is another member."""

    worker: str
    incarnation: int
    rank: int

    def __str__(self) -> str:
        return f"{self.worker}#{self.incarnation}"


def by_rank(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda member: (member.rank, member.worker)))


class RoundId(NamedTuple):
    """One attempt to gather one round."""

    round: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.round}/{self.attempt}"


class Receipt(enum.Enum):
    """What becomes of a contribution that no round takes."""

    LATE = "late"
    STALE = "stale"
    DUPLICATE = "duplicate"


class Offer(NamedTuple):
    """A contribution that waits for its turn.

    Attributes:
        sequence: counts the contributions of its member, from 1.
        based_on: steps applied in the parameters that it was computed from.
    """

    member: Member
    sequence: int
    based_on: int


class Selected(NamedTuple):
    """A contribution that an attempt takes.

    Attributes:
        sequence: which of its member's, where contributions are taken in turn; else 0.
        scale: what it is multiplied by.
    """

    member: Member
    sequence: int = 0
    scale: float = 1.0

    def __str__(self) -> str:
        name = f"{self.member}:{self.sequence}" if self.sequence else str(self.member)
        return name if self.scale == 1.0 else f"{name} times {self.scale:g}"


class Refusal(NamedTuple):
    """A contribution that no round takes; nor those of its member before it."""

    member: Member
    sequence: int
    receipt: Receipt

    def __str__(self) -> str:
        return f"{self.member}:{self.sequence} is {self.receipt.value}"


class Standing(NamedTuple):
    """What has been counted of a member.

    Attributes:
        sequence: the latest of its contributions that counts; 0: none.
        turns: how many rounds it has had; of a newcomer, what the slowest had when it joined.
    """

    sequence: int = 0
    turns: int = 0


class Timer(enum.Enum):
    """What an attempt waits for by the clock."""

    # Latecomers, when a quorum has arrived.
    GRACE = "grace"
    # Contributions that had begun to arrive when the round was closed.
    STRAGGLERS = "stragglers"


# A log line needs no more.
_NORMS_SHOWN: Final = 8

# One shard's part of a norm: the sum of |g|^p, or for p = infinity the largest |g|.
NormPart: TypeAlias = ExactSum | float


@dataclass(frozen=True)
class Nonfinite:
    """Whose contribution holds a NaN or an infinity, and the first parameter in which."""

    member: Member
    parameter: int

    def __str__(self) -> str:
        return f"{self.member} in parameter {self.parameter}"


@dataclass(frozen=True)
class Sums:
    """What one shard found when all contributions were in.

    Attributes:
        run_norms: by group, in the norm of the run's clip.
        group_norms: by group, in the norm of the group's own clip; None without one.
        nonfinite: not empty: the rest means nothing.
        overflow: the sum of finite contributions was not finite.
        sequences: of what was added, in the order of ranks; empty where contributions are taken in turn.
    """

    run_norms: tuple[NormPart, ...] = ()
    group_norms: tuple[NormPart | None, ...] = ()
    nonfinite: tuple[Nonfinite, ...] = ()
    overflow: bool = False
    sequences: tuple[int, ...] = ()


class Outcome(enum.Enum):
    """How a round ended."""

    APPLIED = "applied"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class GroupRates:
    """One group in one step: its rate, what its own clip multiplies its gradient by, and its momentum if that is not
    the rule's own."""

    lr: float
    clip_scale: float = 1.0
    momentum: float | None = None


# By parameter, for layerwise rules: the two sums of squares that one shard found.
Measures: TypeAlias = Mapping[int, tuple[ExactSum, ExactSum]]


class TensorNorms(NamedTuple):
    """The norms of one whole tensor that its layerwise rule asked for."""

    parameter: int
    first: float
    second: float

    def __str__(self) -> str:
        return f"{self.parameter}: {self.first:g} {self.second:g}"


@dataclass(frozen=True)
class Decision:
    """The one decision of a round.

    Attributes:
        id: the attempt that was decided.
        outcome: only APPLIED changes anything.
        step: steps applied after it.
        groups: by group.
        grad_norm: of the gradient that the run's clip by norm acts on. NaN where contributions were not finite,
            infinite where their sum was not, 0 where nobody was left.
        clip_scale: what the run's clip multiplies every gradient by.
        members: who took part, by rank.
        nonfinite: who sent values that are not finite, in any attempt of the round.
        quarantined: who was left out for it.
        norms: of APPLIED, for every parameter that has a gradient and a layerwise rule.
        counted: what the round took, where contributions are taken in turn.
        late: who was asked and not awaited.
    """

    id: RoundId
    outcome: Outcome
    step: int
    groups: tuple[GroupRates, ...]
    grad_norm: float
    clip_scale: float
    members: tuple[Member, ...]
    nonfinite: tuple[Nonfinite, ...] = ()
    quarantined: tuple[Member, ...] = ()
    norms: tuple[TensorNorms, ...] = ()
    counted: tuple[Selected, ...] = ()
    late: tuple[Member, ...] = ()

    @property
    def step_before(self) -> int:
        return self.step - 1 if self.outcome is Outcome.APPLIED else self.step

    def __str__(self) -> str:
        words = [f"{self.id} {self.outcome.value}: step {self.step}, norm {self.grad_norm:g}"]
        if self.clip_scale != 1.0:
            words.append(f"scale {self.clip_scale:.6g}")
        words.append("rates " + " ".join(f"{group.lr:g}" for group in self.groups))
        if any(group.clip_scale != 1.0 for group in self.groups):
            words.append("group scales " + " ".join(f"{group.clip_scale:.6g}" for group in self.groups))
        if any(group.momentum is not None for group in self.groups):
            momenta = ("-" if group.momentum is None else f"{group.momentum:g}" for group in self.groups)
            words.append("momenta " + " ".join(momenta))
        words.append("of " + (" ".join(map(str, self.members)) or "nobody"))
        if self.counted:
            words.append("counted " + " ".join(map(str, self.counted)))
        if self.late:
            words.append("late: " + " ".join(map(str, self.late)))
        if self.nonfinite:
            words.append("not finite: " + ", ".join(map(str, self.nonfinite)))
        if self.quarantined:
            words.append("left out: " + " ".join(map(str, self.quarantined)))
        if self.norms:
            words.append("norms of " + ", ".join(map(str, self.norms[:_NORMS_SHOWN])))
        return ", ".join(words)


class Phase(enum.Enum):
    WAITING = "waiting"
    GATHERING = "gathering"
    MEASURING = "measuring"
    FINISHING = "finishing"
    RECOVERING = "recovering"
    LOST = "lost"
