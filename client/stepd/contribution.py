"""One gradient on its way into one round, and how the round ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stepd.buffers import Array
from stepd.results import Receipt, receipt_word
from stepd.transfer import bytes_of
from stepd.v1 import round_pb2, shard_pb2


@dataclass
class Contribution:
    """One gradient on its way into one round.

    Attributes:
        views: the bytes of each parameter it holds, by id.
        weight: of it, in weighted runs.
        round: -1 until the first byte is sent.
        attempt: the latest that was heard of.
        receipts: of this attempt, by shard.
        begun: where and in which attempt it may have arrived.
        over: its round is decided.
    """

    views: Mapping[int, memoryview]
    weight: float
    round: int = -1
    attempt: int = 0
    receipts: dict[int, shard_pb2.PushResponse] = field(default_factory=dict)
    begun: set[tuple[int, int]] = field(default_factory=set)
    over: bool = False

    @classmethod
    def of(cls, arrays: Mapping[int, Array], weight: float) -> Contribution:
        return cls({id_: bytes_of(array) for id_, array in arrays.items()}, weight)

    @property
    def id(self) -> round_pb2.RoundId:
        return round_pb2.RoundId(round=self.round, attempt=self.attempt)

    def start_over(self, attempt: int) -> None:
        """The round is gathered again, under this attempt."""
        self.attempt = attempt
        self.receipts.clear()

    def receipt(self, decision: round_pb2.Decision | None = None, member: round_pb2.Member | None = None) -> Receipt:
        """What all shards together say; and the decision, which knows who was left out."""
        word = receipt_word([receipt.status for receipt in self.receipts.values()])
        if decision is not None and member is not None and member in decision.quarantined:
            word = "quarantined"
        return Receipt(word, max((receipt.step for receipt in self.receipts.values()), default=0), self.round)


@dataclass(frozen=True)
class Settled:
    """How a round ended, with the parameters after it in place."""

    decision: round_pb2.Decision
    step: int
