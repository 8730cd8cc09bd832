"""The words of a round to and from the wire."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from stepd import specs
from stepd.errors import InvalidArgument
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.coordinator.events import Gather, RecordAttempt, Select
from stepd_server.coordinator.vocabulary import (
    Decision,
    GroupRates,
    Measures,
    Member,
    Nonfinite,
    NormPart,
    Offer,
    Outcome,
    Receipt,
    RoundId,
    Selected,
    Standing,
    Sums,
    TensorNorms,
)
from stepd_server.exact import ExactSum

_OUTCOMES: Final = {
    Outcome.APPLIED: round_pb2.OUTCOME_APPLIED,
    Outcome.SKIPPED: round_pb2.OUTCOME_SKIPPED,
    Outcome.FAILED: round_pb2.OUTCOME_FAILED,
}
_OUTCOMES_BACK: Final = {number: outcome for outcome, number in _OUTCOMES.items()}
_RECEIPTS: Final = {
    Receipt.LATE: shard_pb2.RECEIPT_STATUS_LATE,
    Receipt.STALE: shard_pb2.RECEIPT_STATUS_STALE,
    Receipt.DUPLICATE: shard_pb2.RECEIPT_STATUS_DUPLICATE,
}
_REDUCTIONS: Final = {
    "mean": run_pb2.REDUCTION_MEAN,
    "sum": run_pb2.REDUCTION_SUM,
    "weighted": run_pb2.REDUCTION_WEIGHTED,
}


class Senseless(ValueError):
    """A shard has sent what cannot be."""


def member_to_proto(member: Member) -> round_pb2.Member:
    return round_pb2.Member(worker=member.worker, incarnation=member.incarnation, rank=member.rank)


def member_from_proto(message: round_pb2.Member) -> Member:
    return Member(message.worker, message.incarnation, message.rank)


def id_to_proto(id_: RoundId) -> round_pb2.RoundId:
    return round_pb2.RoundId(round=id_.round, attempt=id_.attempt)


def id_from_proto(message: round_pb2.RoundId) -> RoundId:
    return RoundId(message.round, message.attempt)


def _nonfinite_to_proto(found: Iterable[Nonfinite]) -> list[round_pb2.NonfiniteContribution]:
    return [
        round_pb2.NonfiniteContribution(member=member_to_proto(one.member), parameter=one.parameter) for one in found
    ]


def _nonfinite_from_proto(found: Iterable[round_pb2.NonfiniteContribution]) -> tuple[Nonfinite, ...]:
    return tuple(Nonfinite(member_from_proto(one.member), one.parameter) for one in found)


def _part_from_proto(message: round_pb2.NormPart) -> NormPart | None:
    match message.WhichOneof("part"):
        case "powers":
            return _exact_from_proto(message.powers)
        case "maximum":
            return message.maximum
    return None


def sums_from_proto(message: round_pb2.GatheredSums, groups: int) -> Sums:
    """What a shard found; Senseless if it does not fit the number of groups."""
    nonfinite, sequences = _nonfinite_from_proto(message.nonfinite), tuple(message.sequences)
    if nonfinite or message.overflow:
        return Sums(nonfinite=nonfinite, overflow=message.overflow, sequences=sequences)
    run_norms = [_part_from_proto(part) for part in message.run_norms]
    group_norms = tuple(_part_from_proto(part) for part in message.group_norms)
    whole = [part for part in run_norms if part is not None]
    if not len(whole) == len(group_norms) == len(run_norms) == groups:
        raise Senseless(f"sums of {len(whole)} and {len(group_norms)} groups, the run has {groups}")
    return Sums(tuple(whole), group_norms, sequences=sequences)


def decision_to_proto(decision: Decision) -> round_pb2.Decision:
    return round_pb2.Decision(
        id=id_to_proto(decision.id),
        outcome=_OUTCOMES[decision.outcome],
        step=decision.step,
        groups=[
            round_pb2.GroupRates(lr=group.lr, clip_scale=group.clip_scale, momentum=group.momentum)
            for group in decision.groups
        ],
        grad_norm=decision.grad_norm,
        clip_scale=decision.clip_scale,
        members=map(member_to_proto, decision.members),
        nonfinite=_nonfinite_to_proto(decision.nonfinite),
        quarantined=map(member_to_proto, decision.quarantined),
        norms=[round_pb2.TensorNorms(parameter=id_, first=a, second=b) for id_, a, b in decision.norms],
        counted=[_name(one.member, one.sequence) for one in decision.counted],
        late=map(member_to_proto, decision.late),
    )


def decision_for_readers(decision: Decision) -> round_pb2.Decision:
    """Without what only shards need."""
    return decision_to_proto(dataclasses.replace(decision, norms=()))


def decision_from_proto(message: round_pb2.Decision) -> Decision:
    return Decision(
        id=id_from_proto(message.id),
        outcome=_OUTCOMES_BACK[message.outcome],
        step=message.step,
        groups=tuple(_rates_from_proto(group) for group in message.groups),
        grad_norm=message.grad_norm,
        clip_scale=message.clip_scale,
        members=tuple(map(member_from_proto, message.members)),
        nonfinite=_nonfinite_from_proto(message.nonfinite),
        quarantined=tuple(map(member_from_proto, message.quarantined)),
        norms=tuple(TensorNorms(norms.parameter, norms.first, norms.second) for norms in message.norms),
        counted=tuple(Selected(member_from_proto(name.member), name.sequence) for name in message.counted),
        late=tuple(map(member_from_proto, message.late)),
    )


def recorded_to_proto(
    decision: Decision, standings: Iterable[tuple[Member, Standing]] = ()
) -> round_pb2.RecordedDecision:
    return round_pb2.RecordedDecision(
        decision=decision_to_proto(decision),
        standings=[
            round_pb2.Standing(member=member_to_proto(member), sequence=standing.sequence, turns=standing.turns)
            for member, standing in standings
        ],
    )


def standings_from_proto(message: round_pb2.RecordedDecision) -> dict[Member, Standing]:
    return {
        member_from_proto(standing.member): Standing(standing.sequence, standing.turns)
        for standing in message.standings
    }


def _name(member: Member, sequence: int) -> round_pb2.ContributionName:
    return round_pb2.ContributionName(member=member_to_proto(member), sequence=sequence)


def _selected(selected: Selected) -> shard_control_pb2.SelectedContribution:
    name = _name(selected.member, selected.sequence)
    return shard_control_pb2.SelectedContribution(name=name, scale=selected.scale)


def select_to_proto(run: str, select: Select) -> shard_control_pb2.SelectContributorsRequest:
    return shard_control_pb2.SelectContributorsRequest(
        run=run,
        id=id_to_proto(select.id),
        selected=map(_selected, select.selected),
        refused=[
            shard_control_pb2.RefusedContribution(name=_name(one.member, one.sequence), status=_RECEIPTS[one.receipt])
            for one in select.refused
        ],
    )


def earlier_from_proto(message: shard_control_pb2.EarlierAttempts) -> tuple[Member, ...] | None:
    return None if message.unknown else tuple(map(member_from_proto, message.whole))


def offer_from_proto(message: shard_control_pb2.OfferedContribution) -> Offer:
    return Offer(member_from_proto(message.name.member), message.name.sequence, message.based_on)


def attempt_to_proto(attempt: RecordAttempt) -> round_pb2.Decision:
    """As the beginning of the decision that may come of it."""
    return round_pb2.Decision(
        id=id_to_proto(attempt.id),
        nonfinite=_nonfinite_to_proto(attempt.nonfinite),
        quarantined=map(member_to_proto, attempt.left_out),
    )


def attempt_from_proto(message: round_pb2.Decision) -> RecordAttempt:
    return RecordAttempt(
        id_from_proto(message.id),
        tuple(map(member_from_proto, message.quarantined)),
        _nonfinite_from_proto(message.nonfinite),
    )


def _rates_from_proto(message: round_pb2.GroupRates) -> GroupRates:
    momentum = message.momentum if message.HasField("momentum") else None
    return GroupRates(message.lr, message.clip_scale, momentum)


def measures_from_proto(messages: Iterable[shard_control_pb2.MeasureRoundResponse]) -> Measures:
    """What a shard found of the norms of tensors; Senseless if it is too much."""
    found: dict[int, tuple[ExactSum, ExactSum]] = {}
    for sums in (sums for message in messages for sums in message.sums):
        if sums.parameter in found:
            raise Senseless(f"parameter {sums.parameter} is measured twice")
        found[sums.parameter] = (_exact_from_proto(sums.first), _exact_from_proto(sums.second))
    return found


def _exact_from_proto(message: round_pb2.ExactSum) -> ExactSum:
    try:
        return ExactSum.from_proto(message)
    except InvalidArgument as error:
        raise Senseless(str(error)) from error


def gather_to_proto(gather: Gather) -> shard_control_pb2.RoundToGather:
    return shard_control_pb2.RoundToGather(
        id=id_to_proto(gather.id),
        members=map(member_to_proto, gather.members),
        clip=specs.clip_to_proto(gather.clip) if gather.clip else None,
        reduction=_REDUCTIONS[gather.reduction],
        deterministic=gather.deterministic,
        quarantined=map(member_to_proto, gather.quarantined),
        layout_version=gather.layout,
        in_turn=gather.in_turn,
        selected=_selected(gather.selected) if gather.selected else None,
    )
