"""Who is in a run: names, ranks, incarnations and leases. Pure: time is an argument, in seconds of any steady clock."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from stepd.errors import FailedPrecondition
from stepd.limits import (
    LEASE_S_MAX,
    LEASE_S_MIN,
    METRIC_NAME_CHARS_MAX,
    METRICS_MAX,
    OBSERVATIONS_MAX,
    WORKER_NAME_CHARS_MAX,
    WORKERS_MAX,
)
from stepd.settings import refuse
from stepd_server.coordinator.policy import Policy
from stepd_server.coordinator.vocabulary import Member

_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{WORKER_NAME_CHARS_MAX}}}")


@dataclass
class Seat:
    """A member's place.

    Attributes:
        member: who has it.
        lease: seconds that it lasts from each renewal.
        expires: when it ends unless renewed.
        request_id: of the call that made it.
        joined_at: seconds since the epoch.
        metrics: the latest values reported.
        observed: how many values schedules were told.
    """

    member: Member
    lease: float
    expires: float
    request_id: str
    joined_at: float
    metrics: dict[str, float] = field(default_factory=dict)
    observed: int = 0


class Membership:
    """The members of one run."""

    def __init__(self, run: str, incarnations: count[int]) -> None:
        """Args:
        run: its name, for errors.
        incarnations: numbers higher than any that was ever given in this run.
        """
        self._run = run
        self._incarnations = incarnations
        self._seats: dict[str, Seat] = {}
        # Members that left while their contribution was still on its way, with the end of their lease.
        self._leaving: dict[Member, float] = {}

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def seats(self) -> list[Seat]:
        """By rank."""
        return sorted(self._seats.values(), key=lambda seat: seat.member.rank)

    def seat_of(self, member: Member) -> Seat:
        """The member's seat, or FailedPrecondition NOT_A_MEMBER."""
        seat = self._seats.get(member.worker)
        if seat is None or seat.member != member:
            raise FailedPrecondition(
                f"worker {member.worker!r} (incarnation {member.incarnation}) is not a member of run {self._run!r} "
                "any more: it has left, its lease has run out, it has joined again, or the coordinator has restarted",
                reason="NOT_A_MEMBER",
                run=self._run,
                worker=member.worker,
                incarnation=member.incarnation,
            )
        return seat

    def join(
        self,
        policy: Policy,
        *,
        name: str,
        rank: int | None,
        lease: float,
        request_id: str,
        now: float,
        joined_at: float,
    ) -> tuple[Seat, bool]:
        """Give a worker a seat.

        Args:
            name: empty: one is made up. Of a member: takes its place over, under a new incarnation.
            rank: None: the old one, or the lowest that is free.

        Returns:
            The seat, and whether it is new; it is not if the request is a repeat.
        """
        self._check(name, rank, lease)
        repeated = next((seat for seat in self._seats.values() if request_id and seat.request_id == request_id), None)
        if repeated:
            repeated.expires = now + repeated.lease
            return repeated, False
        old = self._seats.get(name)
        if old is None and not policy.has_room(len(self._seats)):
            workers = ", ".join(seat.member.worker for seat in self.seats)
            raise FailedPrecondition(
                f"run {self._run!r} takes {len(self._seats)} workers and has them: {workers}",
                reason="RUN_FULL",
                run=self._run,
                expected=len(self._seats),
                given=len(self._seats) + 1,
            )
        rank = self._rank(rank, old)
        incarnation = next(self._incarnations)
        member = Member(name or self._made_up(rank, incarnation), incarnation, rank)
        seat = Seat(member, lease, now + lease, request_id, joined_at)
        self._seats[member.worker] = seat
        return seat, True

    def _check(self, name: str, rank: int | None, lease: float) -> None:
        if name and not _NAME.fullmatch(name):
            refuse("worker", "name", name, f"1 to {WORKER_NAME_CHARS_MAX} characters of A-Z, a-z, 0-9, _, . and -")
        if rank is not None and not 0 <= rank < WORKERS_MAX:
            refuse("worker", "rank", rank, f"from 0 to {WORKERS_MAX - 1}")
        if not LEASE_S_MIN <= lease <= LEASE_S_MAX:
            refuse("worker", "lease", lease, f"from {LEASE_S_MIN} to {LEASE_S_MAX} seconds")

    def _rank(self, wanted: int | None, old: Seat | None) -> int:
        taken = {seat.member.rank: seat.member.worker for seat in self._seats.values() if seat is not old}
        if wanted is None:
            return old.member.rank if old else next(rank for rank in count() if rank not in taken)
        if wanted in taken:
            raise FailedPrecondition(
                f"rank {wanted} of run {self._run!r} belongs to worker {taken[wanted]!r}",
                reason="RANK_TAKEN",
                run=self._run,
                rank=wanted,
                worker=taken[wanted],
            )
        return wanted

    def _made_up(self, rank: int, incarnation: int) -> str:
        name = f"worker-{rank}"
        return name if name not in self._seats else f"{name}-{incarnation}"

    def renew(self, member: Member, now: float) -> Seat:
        seat = self.seat_of(member)
        seat.expires = now + seat.lease
        return seat

    def observe(self, seat: Seat, values: Sequence[float], before: int) -> Sequence[float]:
        """Those of a member's values that schedules are to be told: what has not come before, of one member only.

        Args:
            seat: the member's.
            values: oldest first.
            before: how many of the member's came before these.
        """
        if len(values) > OBSERVATIONS_MAX:
            refuse("worker", "observed", len(values), f"at most {OBSERVATIONS_MAX} values")
        new = values[max(0, seat.observed - before) :]
        seat.observed = max(seat.observed, before + len(values))
        first = next((other for other in self.seats if other.observed), seat)
        return new if first is seat else ()

    def leave(self, member: Member) -> bool:
        """Take the seat away; whether there was one. Its lease goes on as that of a contribution on its way."""
        seat = self._seats.get(member.worker)
        if seat is None or seat.member != member:
            return False
        del self._seats[member.worker]
        self._leaving[member] = seat.expires
        return True

    def expire(self, now: float) -> list[Member]:
        """Take away what has run out: members that are lost, and those that left and whose time has passed."""
        lost = [seat.member for seat in self._seats.values() if seat.expires <= now]
        for member in lost:
            del self._seats[member.worker]
        gone = [member for member, expires in self._leaving.items() if expires <= now]
        for member in gone:
            del self._leaving[member]
        return lost + gone


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raise InvalidArgument for more or longer names than are kept."""
    if len(metrics) > METRICS_MAX:
        refuse("worker", "metrics", len(metrics), f"at most {METRICS_MAX} values")
    for name in metrics:
        if len(name) > METRIC_NAME_CHARS_MAX or not name.isprintable():
            refuse("worker", "metrics", name, f"named with at most {METRIC_NAME_CHARS_MAX} printable characters")
