"""The words of a round as frozen values: proto/stepd/v1/round.proto without the wire.

`str()` of each is what transcripts and logs show.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
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


class RoundId(NamedTuple):
    """One attempt to gather one round."""

    round: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.round}/{self.attempt}"


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
    """

    run_norms: tuple[NormPart, ...] = ()
    group_norms: tuple[NormPart | None, ...] = ()
    nonfinite: tuple[Nonfinite, ...] = ()
    overflow: bool = False


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
