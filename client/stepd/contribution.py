"""One gradient on its way into one round, and how the round ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from stepd.buffers import Array
from stepd.definitions import ParameterSpec
from stepd.errors import NonFiniteGradient
from stepd.results import Receipt, receipt_word
from stepd.v1 import round_pb2, shard_pb2

# Receipts of what no round takes.
_REFUSED: Final = {
    shard_pb2.RECEIPT_STATUS_LATE,
    shard_pb2.RECEIPT_STATUS_STALE,
    shard_pb2.RECEIPT_STATUS_QUARANTINED,
}


@dataclass
class Contribution:
    """One gradient on its way into one round.

    Attributes:
        views: of each parameter it holds, by id: C-contiguous.
        weight: of it, in weighted runs.
        based_on: steps applied in the parameters that it was computed from.
        sender: the membership that it is of.
        sequence: counts the contributions of this worker; 0 until the first byte is sent.
        in_turn: it is for whichever round takes it.
        round: what it is for; -1: not known yet.
        attempt: the latest that was heard of.
        receipts: of this attempt, by shard.
        begun: where and, of a round, in which attempt it may have arrived.
        over: its round is decided, or none takes it.
        torn: it was computed from views that have been written over.
        left_out: it had its turn, and was left out for its values.
    """

    views: Mapping[int, Array]
    weight: float
    based_on: int = 0
    sender: round_pb2.Member = field(default_factory=round_pb2.Member)
    sequence: int = 0
    in_turn: bool = False
    round: int = -1
    attempt: int = 0
    receipts: dict[int, shard_pb2.PushResponse] = field(default_factory=dict)
    begun: set[tuple[int, int]] = field(default_factory=set)
    over: bool = False
    torn: bool = False
    left_out: bool = False

    @classmethod
    def of(cls, arrays: Mapping[int, Array], weight: float, based_on: int, *, torn: bool = False) -> Contribution:
        return cls(arrays, weight, based_on, torn=torn)

    def is_refused_by(self, shard: int) -> bool:
        """Whether a shard has said that no round takes it."""
        receipt = self.receipts.get(shard)
        return receipt is not None and receipt.status in _REFUSED

    @property
    def id(self) -> round_pb2.RoundId:
        return round_pb2.RoundId(round=self.round, attempt=self.attempt)

    def start_over(self, attempt: int, *, in_turn: bool = False) -> None:
        """The round is gathered again, under this attempt.

        Args:
            in_turn: contributions are taken in turn by now.
        """
        if in_turn and not self.in_turn:
            self.in_turn, self.over = True, False  # its round may be over, but not what it is for now
        self.round, self.attempt = (-1, 0) if self.in_turn else (self.round, attempt)
        self.receipts.clear()

    def go_over(self, sender: round_pb2.Member, first: round_pb2.RoundId) -> None:
        """It is another membership's now, and for the first attempt that takes one of that."""
        self.sender = sender
        self.round = first.round
        self.begun.clear()
        self.start_over(first.attempt)

    def was_passed_over(self, decision: round_pb2.Decision) -> bool:
        """Whether its round ended without anybody's contribution, and not for anything that is wrong with this one.

        Such a round was over for want of workers and has changed nothing: what was sent for it is for the next one.
        """
        skipped = decision.outcome == round_pb2.OUTCOME_SKIPPED and not decision.members
        return (
            skipped
            and not self._is_stale
            and not self.in_turn
            and decision.id.round == self.round
            and self.sender not in decision.quarantined
        )

    def go_on_to(self, round: int) -> None:
        """It is for this round instead."""
        self.round, self.over = round, False
        self.begun.clear()
        self.start_over(0)

    def is_in_doubt(self, decision: round_pb2.Decision) -> bool:
        """Whether neither this decision nor a receipt says what has become of it: its round was decided before."""
        refused = any(receipt.status in _REFUSED for receipt in self.receipts.values())
        return not self.in_turn and not refused and 0 <= self.round < decision.id.round

    @property
    def _is_stale(self) -> bool:
        return any(receipt.status == shard_pb2.RECEIPT_STATUS_STALE for receipt in self.receipts.values())

    def refuse_as_stale(self, after: int) -> None:
        """It is not sent: parameters have changed since those that it was computed from.

        Args:
            after: the round whose parameters are read in its place.
        """
        self.round, self.over, self.views = after, True, {}
        self.receipts = {0: shard_pb2.PushResponse(status=shard_pb2.RECEIPT_STATUS_STALE, step=self.based_on)}

    def find_round(self) -> bool:
        """Take from the receipts which round it is in; whether all shards have the same attempt of it, or are done."""
        if any(receipt.status in _REFUSED or not receipt.HasField("id") for receipt in self.receipts.values()):
            self.over = True
            return True
        newest = max((receipt.id.round, receipt.id.attempt) for receipt in self.receipts.values())
        # What is in an attempt that is over has to be sent again.
        older = [s for s, receipt in self.receipts.items() if (receipt.id.round, receipt.id.attempt) < newest]
        for shard in older:
            del self.receipts[shard]
        if not older:
            self.round, self.attempt = newest
        return not older

    def is_settled(self, headers: Iterable[shard_pb2.PullHeader]) -> bool:
        """Whether what the shards say after its round means that it needs not be sent again."""
        return self.over or any(self.is_in(self.id, header) for header in headers)

    def learn(self, headers: Iterable[shard_pb2.PullHeader]) -> None:
        """Take in what the shards say of it after its round, or any number of rounds later."""
        self.left_out |= any(
            header.counted == self.sequence and header.counted_status == shard_pb2.RECEIPT_STATUS_QUARANTINED
            for header in headers
        )

    def is_in(self, id: round_pb2.RoundId, header: shard_pb2.PullHeader) -> bool:
        """Whether a shard that had taken it into an attempt says, after the round, that it counts."""
        return header.counted >= self.sequence or (id.round, id.attempt) == _attempt_of(header)

    def receipt(self, decision: round_pb2.Decision | None = None) -> Receipt:
        """What all shards together say; and the decision of its round, which knows who is in it."""
        word = receipt_word([receipt.status for receipt in self.receipts.values()])
        if self.left_out:
            word = "quarantined"
        if decision is not None and decision.id.round == self.round:
            if self.sender in decision.quarantined:
                word = "quarantined"
            elif self.sender in decision.late:
                word = "late"
            elif word == "accepted" and decision.members and self.sender not in decision.members:
                # Shards had it in an attempt that started over, and its sender was not there for the last.
                word = "late"
        return Receipt(word, max((receipt.step for receipt in self.receipts.values()), default=0), self.round)


def _attempt_of(header: shard_pb2.PullHeader) -> tuple[int, int]:
    return header.decision.id.round, header.decision.id.attempt


@dataclass(frozen=True)
class Settled:
    """How a round ended, with the parameters after it in place."""

    decision: round_pb2.Decision
    step: int


def failure(run: str, parameters: Sequence[ParameterSpec], decision: round_pb2.Decision) -> NonFiniteGradient:
    """The error for a round that failed, of this run with these parameters."""
    found = [(bad.member.worker, bad.member.rank, parameters[bad.parameter].name) for bad in decision.nonfinite]
    senders = "; ".join(f"worker {worker!r} (rank {rank}) in parameter {name!r}" for worker, rank, name in found)
    what = f"a NaN or an infinity came from {senders}" if found else "the sum of the gradients overflowed"
    return NonFiniteGradient(
        f"run {run!r}: the step after {decision.step} failed: {what}",
        run=run,
        step=decision.step,
        round=decision.id.round,
        workers=[worker for worker, _, _ in found],
        ranks=[rank for _, rank, _ in found],
        parameters=[name for _, _, name in found],
    )
