"""What the rounds of one run add up to: counted beside the rounds, which know nothing of it. Pure.

Metrics and RunState both say what is counted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from stepd_server.coordinator.events import Arrived, Event, MemberJoined, MemberLeft, MemberLost
from stepd_server.coordinator.vocabulary import Decision, Member, Outcome, Receipt, Refusal

__all__ = ["REASONS", "Tally", "WorkerTally"]

# Why a round ended without a step: values were not finite, the sum or a norm of finite ones was not, nobody was left.
REASONS: Final = ("nonfinite", "overflow", "nobody")


@dataclass
class WorkerTally:
    """What is counted of one membership.

    Attributes:
        step: of the run, when a contribution of the member was last in a decision, or when it joined.
        waited: seconds from its contributions being whole to their decisions.
        contributions: by status.
        repeated: by shard, how many came again to it.
        refused: the sequence of the latest that no round took.
    """

    member: Member
    step: int
    waited: float = 0.0
    contributions: Counter[str] = field(default_factory=Counter)
    repeated: dict[int, int] = field(default_factory=dict)
    refused: int = 0


class Tally:
    """The counts of one run since this coordinator has it.

    Attributes:
        clipped: steps whose gradient a norm has clipped.
        skipped: rounds without a step, by reason.
        contributions: by status.
        workers: of present members, by rank.
    """

    def __init__(self, step: int = 0, members: Iterable[Member] = ()) -> None:
        """Args:
        step: of the run.
        members: who is in it already.
        """
        self.clipped = 0
        self.skipped: Counter[str] = Counter()
        self.contributions: Counter[str] = Counter()
        self._step = step
        self.workers = {member.rank: WorkerTally(member, step) for member in members}
        # When the contribution of each to the present round was last heard to be whole on a shard.
        self._whole: dict[Member, float] = {}

    def take_in(self, event: Event, now: float) -> None:
        """Count what an event tells; `now` is on any steady clock."""
        match event:
            case Arrived(member=member):
                self._whole[member] = now
            case MemberJoined(member):
                self.workers[member.rank] = WorkerTally(member, self._step)
            case MemberLeft(member=member) | MemberLost(member):
                if self._of(member):
                    del self.workers[member.rank]
            case _:
                pass

    def decided(self, decision: Decision, now: float) -> None:
        """Count a decision that was recorded."""
        self._step = decision.step
        if decision.outcome is not Outcome.APPLIED:
            self.skipped[_reason(decision)] += 1
        elif decision.clip_scale < 1.0 or any(group.clip_scale < 1.0 for group in decision.groups):
            self.clipped += 1
        for status, members in (
            ("accepted", decision.members),
            ("quarantined", decision.quarantined),
            ("late", decision.late),
        ):
            for member in members:
                self.contributions[status] += 1
                if worker := self._of(member):
                    worker.contributions[status] += 1
                    if status != "late":
                        worker.waited += now - self._whole.get(member, now)
                        worker.step = decision.step
        self._whole.clear()

    def refused(self, refusals: Iterable[Refusal]) -> None:
        """Count contributions that shards are told to refuse, of which they may be told several times.

        Those that have been counted before are not among them: shards recognise most of them by themselves, and say how
        many there were.
        """
        for member, sequence, receipt in refusals:
            worker = self._of(member)
            if worker is None or receipt is Receipt.DUPLICATE or sequence <= worker.refused:
                continue
            worker.refused = sequence
            worker.contributions[receipt.value] += 1
            self.contributions[receipt.value] += 1

    def repeated(self, shard: int, counts: Mapping[tuple[str, int], int]) -> None:
        """Take in how often contributions came again to a shard since its process started, by name and incarnation."""
        for worker in self.workers.values():
            number = counts.get((worker.member.worker, worker.member.incarnation), 0)
            if number > worker.repeated.get(shard, 0):  # a shard that was started again counts anew
                worker.repeated[shard] = number
                before, now = worker.contributions["duplicate"], max(worker.repeated.values())
                worker.contributions["duplicate"] = now
                self.contributions["duplicate"] += now - before

    def counts_of(self, member: Member) -> Mapping[str, int]:
        """What became of a member's contributions, by status."""
        worker = self._of(member)
        return worker.contributions if worker else {}

    def _of(self, member: Member) -> WorkerTally | None:
        worker = self.workers.get(member.rank)
        return worker if worker is not None and worker.member == member else None

    def lag_of(self, worker: WorkerTally) -> int:
        """Steps applied since a contribution of the worker was in one."""
        return self._step - worker.step


def _reason(decision: Decision) -> str:
    if decision.nonfinite:
        return "nonfinite"
    return "overflow" if decision.members else "nobody"
