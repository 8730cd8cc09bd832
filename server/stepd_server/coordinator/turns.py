"""Rounds that take contributions in turn: what becomes of one that waits. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from stepd_server.coordinator.attempt import Attempt
from stepd_server.coordinator.line import Line
from stepd_server.coordinator.policy import Policy
from stepd_server.coordinator.vocabulary import Offer, Receipt, Refusal


def offer(attempt: Attempt, line: Line, policy: Policy, shard: int, offered: Offer, step: int) -> bool:
    """Take in that a contribution waits on a shard; whether it says that the selected one was given up."""
    selected = attempt.selected
    if selected and selected[:2] == offered[:2]:
        return False
    if refusal := _refusal(line, policy, offered, step):
        attempt.refused[offered.member] = refusal
    else:
        line.offer(shard, offered)
    return selected is not None and selected.member == offered.member and offered.sequence > selected.sequence


def choose(attempt: Attempt, line: Line, policy: Policy, shards: Iterable[int], step: int) -> None:
    """Select what is next in line, if it is anybody's turn, and refuse what has become too old in it."""
    offers = []
    for waiting in line.offers(shards):
        if refusal := _refusal(line, policy, waiting, step):
            attempt.refused[waiting.member] = refusal
            line.take_out(waiting.member)
        else:
            offers.append(waiting)
    if selected := policy.choose(offers, line.standings, step):
        attempt.select(selected)
        line.take_out(selected.member)


def _refusal(line: Line, policy: Policy, offered: Offer, step: int) -> Refusal | None:
    if refusal := line.refusal(offered):
        return refusal
    stale = policy.is_stale(offered, step)
    return Refusal(offered.member, offered.sequence, Receipt.STALE) if stale else None
