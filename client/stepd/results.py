"""What a worker gets back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from stepd.buffers import Array
from stepd.v1 import shard_pb2

ReceiptWord: TypeAlias = Literal["accepted", "duplicate", "late", "stale", "quarantined"]

# From what one wants to see to what one must hear of.
_WORDS: Final[dict[int, ReceiptWord]] = {
    shard_pb2.RECEIPT_STATUS_ACCEPTED: "accepted",
    shard_pb2.RECEIPT_STATUS_DUPLICATE: "duplicate",
    shard_pb2.RECEIPT_STATUS_LATE: "late",
    shard_pb2.RECEIPT_STATUS_STALE: "stale",
    shard_pb2.RECEIPT_STATUS_QUARANTINED: "quarantined",
}
_BY_CONCERN: Final = list(_WORDS.values())


@dataclass(frozen=True)
class Receipt:
    """What became of one contribution.

    Attributes:
        status: "accepted": it is in its round. "late": the round was closed without it. "stale": it was computed from
            parameters too old for the run. "quarantined": it held values that are not finite and was left out.
            "duplicate": it was in the round before this worker sent it. (What the library sends again by itself, after
            a lost answer, is no duplicate to its worker.)
        step: steps applied when the receipt was written.
        round: which one it was for.
    """

    status: ReceiptWord
    step: int
    round: int

    @property
    def counts(self) -> bool:
        """Whether the contribution is in its round."""
        return self.status in ("accepted", "duplicate")


@dataclass(frozen=True)
class StepResult:
    """One step, as every worker of the round sees it.

    Attributes:
        step: steps applied after it.
        params: the parameters after it, by name. They are the caller's: no later step writes into them.
        lr: the rate of this step, by group.
        grad_norm: of the aggregated gradient over all shards, before the clip by norm.
        clip_scale: what the clip by norm multiplied it by; at most 1.
        skipped: the step was not applied: a contribution was not finite.
        receipt: what became of this worker's contribution.
    """

    step: int
    params: dict[str, Array] = field(repr=False)
    lr: list[float]
    grad_norm: float
    clip_scale: float
    skipped: bool
    receipt: Receipt


def receipt_word(statuses: list[int]) -> ReceiptWord:
    """The gravest of what the shards said."""
    return max((_WORDS.get(status, "accepted") for status in statuses), key=_BY_CONCERN.index, default="accepted")
