"""What a seed stands for: a run, who works on it, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from stepd.averages import Average
from stepd.policies import AnyClip, AnySync, BoundedStaleness, OnNonfinite, Sync
from stepd.rules import Rule
from stepd.schedules import Schedule

Kind: TypeAlias = Literal["cut", "again", "part", "stall", "alone", "slow", "kill", "die", "stop", "wall", "policy"]
Changed: TypeAlias = Literal["rate", "group", "state", "policy"]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong when so many messages have arrived.

    Attributes:
        at: messages.
        kind: "cut": one call; "again": what one call has sent arrives once more; "part": all calls between two hosts;
            "stall": nothing passes between them for a while; "alone": nothing passes between a host and all others;
            "slow": everything takes long; "kill": a process, now; "die": a process, at one of its next stores; "stop":
            a process, for a while; "wall": the wall clock jumps; "policy": the owner changes it, whatever is under way.
        host: which one; for "die" also when.
        seconds: how long it lasts, or until the process is started again; negative: it never is.
        stores: for "die": how many stores it has yet to make.
        where: for "die": only these count, by a part of their names; for "cut" and "again": preferred calls.
        policy: for "policy": to which.
    """

    at: int
    kind: Kind
    host: str
    seconds: float
    stores: int = 0
    where: str = ""
    policy: AnySync | None = None

    def __str__(self) -> str:
        if self.policy is not None:
            return f"at message {self.at}: {self.kind} {self.policy}"
        stores = f" at store {self.stores}" if self.stores else ""
        where = f" of {self.where!r}" if self.where else ""
        return f"at message {self.at}: {self.kind} {self.host} {self.seconds:.2f} s{stores}{where}"


@dataclass(frozen=True)
class Change:
    """What worker 0 changes as the run's owner before it contributes to a step."""

    step: int
    kind: Changed


@dataclass(frozen=True)
class Scenario:
    """A history's beginnings; the rest follows.

    Attributes:
        workers: how many.
        target: steps.
        poison: (worker, step): its gradient for that step has a NaN, until a decision has named it.
        at_once: contributions go to shards, and parameters come back, in one call.
        partial: how often a parameter is left out of a contribution.
        pushes: how often a worker pushes and pulls instead of doing both at once.
        late: by worker, seconds after which it joins.
        leaves: by worker, the step at which it leaves for good.
        lease: seconds.
        changes: by the owner, by step.
        policy: what the owner changes the policy to, if that is among the changes.
        deleted: the step at which the owner deletes the run.
        average: of parameters.
        reader: somebody reads the parameters all the time.
        early: things go wrong already while the run is created.
        faults: by their message.
    """

    seed: int
    shards: int
    workers: int
    target: int
    rule: Rule
    sync: AnySync
    shapes: tuple[tuple[int, ...], ...]
    clip: AnyClip | None = None
    schedule: Schedule | None = None
    on_nonfinite: OnNonfinite = "skip"
    poison: frozenset[tuple[int, int]] = frozenset()
    at_once: bool = False
    partial: float = 0.0
    pushes: float = 0.0
    late: tuple[float, ...] = ()
    leaves: dict[int, int] = field(default_factory=dict)
    lease: float = 2.0
    changes: tuple[Change, ...] = ()
    policy: AnySync | None = None
    deleted: int | None = None
    average: Average | None = None
    reader: bool = False
    early: bool = False
    faults: tuple[Fault, ...] = ()

    @property
    def repeatable(self) -> bool:
        """Whether the result does not depend on what goes wrong on the way."""
        all_of_them = isinstance(self.sync, Sync) and self.sync.workers is not None and self.sync.quorum is None
        return all_of_them and not self.leaves and self.deleted is None and len(self.policies) == 1

    @property
    def in_turn(self) -> bool:
        """Whether every contribution is a step of its own, from the beginning to the end."""
        return not any(isinstance(sync, Sync) for sync in self.policies)

    @property
    def policies(self) -> tuple[AnySync, ...]:
        """What it begins with, and all that may follow."""
        later = (self.policy, *(fault.policy for fault in self.faults))
        return (self.sync, *(policy for policy in later if policy is not None))

    @property
    def lingers(self) -> bool:
        """Whether who has seen the last step must go on, because others could not without it."""
        return any(fault.policy for fault in self.faults) or any(
            isinstance(sync, BoundedStaleness) or (isinstance(sync, Sync) and sync.quorum is not None)
            for sync in self.policies
        )

    @property
    def by_rank(self) -> bool:
        return all(isinstance(sync, Sync) and sync.deterministic for sync in self.policies)

    @property
    def weighted(self) -> bool:
        return any(isinstance(sync, Sync) and sync.reduce == "weighted" for sync in self.policies)

    def undisturbed(self) -> Scenario:
        """Nothing goes wrong, and there is but one shard."""
        return replace(self, faults=(), late=(), shards=1, reader=False)

    def only(self, faults: Iterable[int]) -> Scenario:
        """With these of its faults."""
        return replace(self, faults=tuple(self.faults[number] for number in faults))

    def describe(self) -> str:
        faults = "\n".join(f"    {number}: {fault}" for number, fault in enumerate(self.faults))
        return "\n".join(f"  {name}: {value}" for name, value in vars(self).items() if name != "faults") + (
            f"\n  faults:\n{faults}" if faults else ""
        )
