"""How the round of a contribution ended, from what there is to know it by."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stepd.contribution import Contribution
from stepd.streams import RunStreams
from stepd.v1 import round_pb2, shard_pb2


async def decision_of(
    contribution: Contribution, headers: Mapping[int, shard_pb2.PullHeader], streams: RunStreams
) -> round_pb2.Decision:
    """How the round ended: as a shard says or, if they were all started again meanwhile, the coordinator.

    Of a contribution that no round took: the latest decision.

    Args:
        contribution: whose round is over.
        headers: of pulls after it, by shard.
        streams: of the run.
    """
    known = [header.decision for header in headers.values() if header.HasField("decision")]
    if contribution.in_turn and known and contribution.round not in {decision.id.round for decision in known}:
        return max(known, key=lambda decision: decision.id.round)
    for decision in known:
        if decision.id.round == contribution.round:
            return decision
    state = await streams.state()
    if state.last_decision.id.round >= contribution.round and state.HasField("last_decision"):
        return state.last_decision
    if known:
        return max(known, key=lambda decision: decision.id.round)
    return round_pb2.Decision(
        id=None if contribution.round < 0 else contribution.id,
        outcome=round_pb2.OUTCOME_APPLIED,
        step=max((header.step for header in headers.values()), default=state.step),
        groups=[round_pb2.GroupRates(lr=rate, clip_scale=1) for rate in state.rates],
        grad_norm=math.nan,
        clip_scale=math.nan,
    )
