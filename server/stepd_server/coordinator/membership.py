"""Who is in a run: names, ranks, incarnations and leases. Pure: time is an argument, in seconds of any steady clock.

A place is known by its name; that of a worker which asked for a rank and gave no name, by the rank. Who comes with the
same name, or the same rank, is the same worker started again and takes its place over at once. Anybody else finds it
taken, but is told so only when its holder has been heard of since: the holder may be dead, and its lease may run out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Final

from stepd.errors import FailedPrecondition, StepdError, Unavailable
from stepd.limits import (
    GONE_MAX,
    LEASE_S_MAX,
    LEASE_S_MIN,
    METRIC_NAME_CHARS_MAX,
    METRICS_MAX,
    OBSERVATIONS_MAX,
    REPLACED_MAX,
    WORKER_NAME_CHARS_MAX,
    WORKERS_MAX,
)
from stepd.settings import refuse
from stepd_server.coordinator.policy import Policy
from stepd_server.coordinator.seats import Gone, Replaced, Seat
from stepd_server.coordinator.vocabulary import Member

_NAME: Final = re.compile(rf"[A-Za-z0-9_.-]{{1,{WORKER_NAME_CHARS_MAX}}}")
# Who asks for a place that is held asks again within seconds; after so many without a word it has given up.
_ASKED_S: Final = 60.0


class Membership:
    """The members of one run."""

    def __init__(self, run: str, incarnations: count[int], seats: Iterable[Seat] = ()) -> None:
        """Args:
        run: its name, for errors.
        incarnations: numbers higher than any that was ever given in this run.
        seats: as an earlier coordinator recorded them. Of several for one place the latest holds.
        """
        self._run = run
        self._incarnations = incarnations
        self._seats: dict[str, Seat] = {}
        for seat in sorted(seats, key=lambda seat: seat.member.incarnation):
            for other in self._of_rank(seat.member.rank):
                del self._seats[other.member.worker]
            self._seats[seat.member.worker] = seat
        # Members that left while their contribution was still on its way, with the end of their lease.
        self._leaving: dict[Member, float] = {}
        # By rank: who had the place last. The latest few.
        self._gone: dict[int, Gone] = {}
        # By request_id: when a place that is held was first asked for, and when last.
        self._asked: dict[str, tuple[float, float]] = {}

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
            raise self._no_member(member)
        return seat

    def _no_member(self, member: Member) -> StepdError:
        """Why somebody is not a member any more, as far as is known."""
        taker = next((s for s in self._seats.values() if _has_replaced(s, incarnation=member.incarnation)), None)
        gone = self._gone.get(member.rank)
        if taker is not None:
            why = f"its place was taken over by a worker that came later with the same {_known_by(taker)}"
        elif gone is not None and gone.member == member:
            why = gone.why
        elif (other := self._seats.get(member.worker)) or (other := next(iter(self._of_rank(member.rank)), None)):
            why = f"its place belongs to {other.member.worker!r} (rank {other.member.rank}) now"
        else:
            why = "it has left, or its lease has run out"
        return FailedPrecondition(
            f"worker {member.worker!r} (incarnation {member.incarnation}) is not a member of run {self._run!r} any "
            f"more: {why}",
            reason="NOT_A_MEMBER",
            run=self._run,
            worker=member.worker,
            rank=member.rank,
            incarnation=member.incarnation,
        )

    # --- Joining --------------------------------------------------------------------------------------------------

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
        again: Member | None = None,
    ) -> tuple[Seat, Seat | None, bool]:
        """Give a worker a seat.

        Args:
            policy: says whether there is room.
            name: empty: one is made up.
            rank: None: the old one, or the lowest that is free.
            lease: in seconds.
            request_id: empty: never a repeat.
            now: on the steady clock.
            joined_at: seconds since the epoch.
            again: the membership that the worker has lost and wants back, with its name and rank.

        Returns:
            The seat, the one that it takes the place of, and whether it is new; it is not if the request is a repeat.
        """
        self._check(name, rank, lease)
        repeated = self._repeated(request_id)
        if repeated:
            repeated.heard = now
            return repeated, None, False
        claims = not name and rank is not None
        if again is not None:
            if again.worker in self._seats or self._of_rank(again.rank):
                raise self._no_member(again)
            name, rank = again.worker, again.rank
        old = self._own_place(name, rank)
        if old is None and not policy.has_room(len(self._seats)):
            raise self._held(list(self._seats.values()), request_id, now) or self._full()
        rank = self._rank(rank, old, request_id, now)
        incarnation = next(self._incarnations)
        worker = name or (old.member.worker if old else self._made_up(rank, incarnation))
        seat = Seat(
            Member(worker, incarnation, rank),
            lease,
            now,
            request_id,
            joined_at,
            claimed=claims,
            replaced=(Replaced(old.member.incarnation, old.request_id), *old.replaced)[:REPLACED_MAX] if old else (),
        )
        self._seats[worker] = seat
        self._gone.pop(rank, None)
        self._asked.pop(request_id, None)
        return seat, old, True

    def _repeated(self, request_id: str) -> Seat | None:
        """The seat that this very request was given before."""
        if not request_id:
            return None
        for seat in self._seats.values():
            if seat.request_id == request_id:
                return seat
            if _has_replaced(seat, request_id=request_id):
                incarnation = next(one.incarnation for one in seat.replaced if one.request_id == request_id)
                raise self._no_member(Member(seat.member.worker, incarnation, seat.member.rank))
        return None

    def _own_place(self, name: str, rank: int | None) -> Seat | None:
        """The place that who comes with this name and rank has already."""
        if name:
            return self._seats.get(name)
        return next((seat for seat in self._of_rank(rank) if seat.claimed), None)

    def _of_rank(self, rank: int | None) -> list[Seat]:
        return [seat for seat in self._seats.values() if seat.member.rank == rank]

    def _check(self, name: str, rank: int | None, lease: float) -> None:
        if name and not _NAME.fullmatch(name):
            refuse("worker", "name", name, f"1 to {WORKER_NAME_CHARS_MAX} characters of A-Z, a-z, 0-9, _, . and -")
        if rank is not None and not 0 <= rank < WORKERS_MAX:
            refuse("worker", "rank", rank, f"from 0 to {WORKERS_MAX - 1}")
        if not LEASE_S_MIN <= lease <= LEASE_S_MAX:
            refuse("worker", "lease", lease, f"from {LEASE_S_MIN} to {LEASE_S_MAX} seconds")

    def _rank(self, wanted: int | None, old: Seat | None, request_id: str, now: float) -> int:
        if wanted is None:
            taken = {seat.member.rank for seat in self._seats.values()}
            return old.member.rank if old else next(rank for rank in count() if rank not in taken)
        for holder in self._of_rank(wanted):
            if holder is not old:
                raise self._held([holder], request_id, now) or FailedPrecondition(
                    f"rank {wanted} of run {self._run!r} belongs to worker {holder.member.worker!r}",
                    reason="RANK_TAKEN",
                    run=self._run,
                    rank=wanted,
                    worker=holder.member.worker,
                )
        return wanted

    def _held(self, holders: Sequence[Seat], request_id: str, now: float) -> StepdError | None:
        """The error for a place whose holders may be dead: not all have been heard of since it was asked for."""
        if not request_id:
            return None
        since, _ = self._asked.get(request_id, (now, now))
        self._asked[request_id] = (since, now)
        silent = [seat for seat in holders if seat.heard < since]
        if not silent:
            del self._asked[request_id]
            return None
        first = min(silent, key=lambda seat: seat.expires)
        return Unavailable(
            f"the place in run {self._run!r} is held by worker {first.member.worker!r} (rank {first.member.rank}), "
            f"which has not been heard of for {now - first.heard:.1f} s; its lease runs out in "
            f"{max(first.expires - now, 0):.1f} s",
            reason="PLACE_HELD",
            run=self._run,
            worker=first.member.worker,
            rank=first.member.rank,
        )

    def _full(self) -> StepdError:
        workers = ", ".join(seat.member.worker for seat in self.seats)
        return FailedPrecondition(
            f"run {self._run!r} takes {len(self._seats)} workers and has them: {workers}",
            reason="RUN_FULL",
            run=self._run,
            expected=len(self._seats),
            given=len(self._seats) + 1,
        )

    def _made_up(self, rank: int, incarnation: int) -> str:
        name = f"worker-{rank}"
        return name if name not in self._seats else f"{name}-{incarnation}"

    # --- Staying --------------------------------------------------------------------------------------------------

    def renew(self, member: Member, now: float) -> Seat:
        seat = self.seat_of(member)
        seat.heard = now
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

    def _seat_or_none(self, member: Member) -> Seat | None:
        seat = self._seats.get(member.worker)
        return seat if seat is not None and seat.member == member else None

    # --- Going ----------------------------------------------------------------------------------------------------

    def leave(self, member: Member, now: float) -> bool:
        """Take the seat away; whether there was one. Its lease goes on as that of a contribution on its way."""
        seat = self._seat_or_none(member)
        if seat is None:
            return False
        self._leaving[member] = seat.expires
        self._remove(seat, now, "it has left")
        return True

    def expire(self, now: float) -> list[Member]:
        """Take away what has run out: members that are lost, and those that left and whose time has passed."""
        lost = [seat for seat in self._seats.values() if seat.expires <= now]
        for seat in lost:
            self._remove(seat, now, f"its lease of {seat.lease:g} s has run out")
        gone = [member for member, expires in self._leaving.items() if expires <= now]
        for member in gone:
            del self._leaving[member]
        self._asked = {id_: times for id_, times in self._asked.items() if now - times[1] < _ASKED_S}
        return [seat.member for seat in lost] + gone

    def make_up_for(self, seconds: float) -> None:
        """Nobody could be heard of for so long: leases end that much later."""
        for seat in self._seats.values():
            seat.heard += seconds
        self._leaving = {member: expires + seconds for member, expires in self._leaving.items()}
        self._asked = {id_: (since + seconds, last + seconds) for id_, (since, last) in self._asked.items()}

    def _remove(self, seat: Seat, now: float, why: str) -> None:
        del self._seats[seat.member.worker]
        self._gone.pop(seat.member.rank, None)
        self._gone[seat.member.rank] = Gone(seat.member, now, why)
        if len(self._gone) > GONE_MAX:
            del self._gone[next(iter(self._gone))]

    def missing(self, workers: int | None) -> list[tuple[int, Gone | None]]:
        """Ranks that are empty, with who had them; those that a run of exactly so many workers is short of."""
        taken = Counter(seat.member.rank for seat in self._seats.values())
        lacking = (workers or 1) - len(self._seats)
        latest_first = [gone for gone in reversed(self._gone.values()) if gone.member.rank not in taken]
        empty: dict[int, Gone | None] = {gone.member.rank: gone for gone in latest_first[: max(lacking, 0)]}
        if workers is not None:
            empty |= {rank: None for rank in range(workers) if rank not in taken and rank not in empty}
        return sorted(dict(list(empty.items())[: max(lacking, 0)]).items())


def _has_replaced(seat: Seat, *, incarnation: int = -1, request_id: str = "") -> bool:
    return any(one.incarnation == incarnation or (request_id and one.request_id == request_id) for one in seat.replaced)


def _known_by(seat: Seat) -> str:
    return "rank" if seat.claimed else "name"


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Raise InvalidArgument for more or longer names than are kept."""
    if len(metrics) > METRICS_MAX:
        refuse("worker", "metrics", len(metrics), f"at most {METRICS_MAX} values")
    for name in metrics:
        if len(name) > METRIC_NAME_CHARS_MAX or not name.isprintable():
            refuse("worker", "metrics", name, f"named with at most {METRIC_NAME_CHARS_MAX} printable characters")
