"""What a contribution makes of what the shards say of it."""

from __future__ import annotations

from stepd.contribution import Contribution
from stepd.v1 import round_pb2, shard_pb2

DUPLICATE, QUARANTINED = shard_pb2.RECEIPT_STATUS_DUPLICATE, shard_pb2.RECEIPT_STATUS_QUARANTINED


def test_who_was_left_out_in_its_turn_learns_it_whatever_was_decided_since() -> None:
    contribution = Contribution.of({}, 1.0, 0)
    contribution.sequence, contribution.in_turn, contribution.round = 5, True, 3
    contribution.receipts[0] = shard_pb2.PushResponse(status=shard_pb2.RECEIPT_STATUS_ACCEPTED)
    later = round_pb2.Decision(id=round_pb2.RoundId(round=9))

    contribution.learn(shard_pb2.PullHeader(counted=n, counted_status=s) for n, s in ((4, QUARANTINED), (5, DUPLICATE)))
    assert contribution.receipt(later).status == "accepted"

    contribution.learn([shard_pb2.PullHeader(counted=5, counted_status=QUARANTINED)])
    assert contribution.receipt(later).status == "quarantined"


def test_what_is_for_any_round_by_now_is_not_over_with_its_own() -> None:
    """The round ended without it, and the policy changed: no shard has said that it counts."""
    contribution = Contribution.of({}, 1.0, 0)
    contribution.sequence, contribution.round, contribution.over = 5, 3, True
    contribution.start_over(0, in_turn=True)
    assert (contribution.round, contribution.over) == (-1, False)

    contribution.over = True
    contribution.start_over(1, in_turn=True)
    assert contribution.over, "nothing has changed since it was refused"
