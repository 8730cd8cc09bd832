"""Names, ranks, incarnations and leases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from stepd.errors import InvalidArgument, StepdError
from stepd.limits import GONE_MAX, METRICS_MAX, REPLACED_MAX
from stepd_server.coordinator.membership import Membership, check_metrics
from stepd_server.coordinator.policy import Synchronous
from stepd_server.coordinator.seats import Seat
from stepd_server.coordinator.vocabulary import Member


class Door:
    """A membership with defaults."""

    def __init__(self, workers: int | None = None, seats: Iterable[Seat] = ()) -> None:
        self.members = Membership("digits", count(100), seats)
        self.policy = Synchronous(workers)
        self.requests = count()

    def join(
        self,
        name: str = "",
        rank: int | None = None,
        *,
        lease: float = 10.0,
        now: float = 0.0,
        request: str | None = None,
        again: Member | None = None,
    ) -> Seat:
        request_id = f"request {next(self.requests)}" if request is None else request
        return self.members.join(
            self.policy, name=name, rank=rank, lease=lease, request_id=request_id, now=now, joined_at=now, again=again
        )[0]


@contextmanager
def refused(reason: str, match: str | None = None) -> Iterator[None]:
    with pytest.raises(StepdError, match=match) as caught:
        yield
    assert caught.value.reason == reason


def test_ranks_are_the_lowest_that_are_free() -> None:
    door = Door()
    assert [door.join().member.rank for _ in range(3)] == [0, 1, 2]
    door.members.leave(door.members.seats[1].member, 0.0)
    assert door.join().member.rank == 1
    assert door.join(rank=7).member.rank == 7
    assert door.join().member.rank == 3


def test_names_are_made_up_and_unique() -> None:
    door = Door()
    door.join("worker-1", rank=5)
    names = [door.join().member.worker for _ in range(3)]
    assert len({*names, "worker-1"}) == 4


def test_a_taken_rank_is_refused_with_who_has_it() -> None:
    door = Door()
    door.join("a", rank=2)
    with refused("RANK_TAKEN", r"rank 2 .* belongs to worker 'a'"):
        door.join("b", rank=2)
    with refused("RANK_TAKEN"):  # a name is what the holder is known by, and this one has none
        door.join(rank=2)
    rank = door.join().member.rank
    with refused("RANK_TAKEN"):  # which the holder did not ask for
        door.join(rank=rank)


def test_a_full_run_is_refused_with_who_is_in_it() -> None:
    door = Door(workers=2)
    door.join("a")
    door.join("b")
    with refused("RUN_FULL", "takes 2 workers and has them: a, b"):
        door.join("c")


def test_a_name_that_joins_again_takes_its_own_place_over() -> None:
    door = Door(workers=2)
    first = door.join("a")
    door.join("b")
    again = door.join("a")
    assert again.member == Member("a", 102, first.member.rank)
    with refused("NOT_A_MEMBER", "place was taken over by a worker that came later with the same name"):
        door.members.renew(first.member, 1.0)
    assert not door.members.leave(first.member, 0.0)
    assert len(door.members) == 2
    assert door.join("a", rank=9).member.rank == 9


def test_a_repeated_request_gets_the_earlier_answer() -> None:
    door = Door(workers=1)
    seat = door.join(request="r", now=0.0)
    assert door.join(request="r", now=5.0) is seat
    assert seat.expires == 15.0
    door.members.leave(seat.member, 0.0)
    assert door.join(request="r").member != seat.member


def test_a_rank_that_comes_again_without_a_name_takes_its_own_place_over() -> None:
    """As a StatefulSet's or torchrun's process that is started again before its lease has run out."""
    door = Door(workers=2)
    door.join(rank=0)
    first = door.join(rank=1)
    again = door.join(rank=1)
    assert again.member == Member("worker-1", 102, 1)
    with refused("NOT_A_MEMBER", "came later with the same rank"):
        door.members.renew(first.member, 1.0)
    assert door.join(rank=1).member.incarnation == 103
    assert len(door.members) == 2


def test_a_late_repeat_of_a_join_does_not_take_the_place_back() -> None:
    door = Door()
    first = door.join(rank=1, request="old")
    newer = door.join(rank=1, request="new")
    with refused("NOT_A_MEMBER", "place was taken over"):
        door.join(rank=1, request="old")
    assert door.members.seats == [newer]
    for number in range(REPLACED_MAX + 1):
        newer = door.join(rank=1, request=f"newer {number}")
    assert len(newer.replaced) == REPLACED_MAX
    assert first.member.incarnation not in [one.incarnation for one in newer.replaced]


def test_who_finds_a_place_taken_is_told_so_when_its_holder_has_been_heard_of() -> None:
    """Until then the holder may be dead, and the place free before long."""
    door = Door(workers=2)
    a, b = door.join("a", rank=0, lease=10.0).member, door.join("b", rank=1, lease=4.0).member
    with refused("PLACE_HELD", r"'b' \(rank 1\), which has not been heard of for 2.0 s; its lease runs out in 2.0 s"):
        door.join("c", now=2.0, request="c")
    door.members.renew(a, 2.5)
    with refused("PLACE_HELD", "'b'"):
        door.join("c", now=2.6, request="c")
    with refused("PLACE_HELD", "'b'"):
        door.join("d", rank=1, now=2.6, request="d")
    door.members.renew(b, 3.0)
    with refused("RUN_FULL"):
        door.join("c", now=3.1, request="c")
    door.policy = Synchronous(3)
    with refused("RANK_TAKEN"):
        door.join("d", rank=1, now=3.1, request="d")
    assert door.members.expire(7.5) == [b]
    assert door.join("d", rank=1, now=7.5, request="d").member.rank == 1


def test_who_was_lost_without_wanting_to_gets_its_place_back_if_it_is_free() -> None:
    door = Door(workers=2)
    a = door.join("a", rank=5, lease=2.0).member
    b = door.join("", rank=1, lease=2.0).member
    assert set(door.members.expire(2.0)) == {a, b}
    again = door.join("a", rank=5, now=3.0, again=a)
    assert again.member == Member("a", 102, 5)
    with refused("NOT_A_MEMBER", r"its place belongs to 'a' \(rank 5\) now"):
        door.join("a", rank=5, now=3.0, again=a)
    assert door.join("", rank=1, now=3.0, again=b).claimed
    door.join("", rank=1, now=3.0)  # started again
    with refused("NOT_A_MEMBER", "its place was taken over"):
        door.join("", rank=1, now=3.0, again=b._replace(incarnation=103))


def test_a_place_that_somebody_else_has_got_is_not_given_back() -> None:
    door = Door()
    a = door.join(lease=2.0).member
    door.members.expire(2.0)
    newcomer = door.join("c", now=2.0)
    assert newcomer.member.rank == a.rank
    with refused("NOT_A_MEMBER", "its place belongs to 'c'"):
        door.join(now=2.0, again=a)
    assert door.members.seats == [newcomer]


def test_members_are_found_again_with_their_whole_lease() -> None:
    door = Door()
    a = door.join("a", rank=3, lease=2.0, request="r")
    a.first_round = 7
    b = door.join(rank=1, lease=2.0)
    b = door.join(rank=1, lease=2.0)
    after = Door(seats=[Seat.from_bytes(seat.to_bytes(), 50.0) for seat in (b, a)])
    assert [seat.member for seat in after.members.seats] == [b.member, a.member]
    found = after.members.seat_of(a.member)
    assert (found.first_round, found.lease, found.expires, found.joined_at) == (7, 2.0, 52.0, 0.0)
    assert after.join("a", request="r", now=51.0) is found
    with refused("NOT_A_MEMBER", "came later with the same rank"):
        after.members.seat_of(b.member._replace(incarnation=b.member.incarnation - 1))
    assert after.join(rank=1, request="new", now=51.0).member.worker == "worker-1"


def test_of_two_records_for_one_place_the_later_holds() -> None:
    """As a kill leaves them between writing the new and removing the old."""
    old, new = Door().join("a", rank=1), Door().join("a", rank=1)
    new.member = new.member._replace(incarnation=200)
    other = Door().join("b", rank=1)
    other.member = other.member._replace(incarnation=300)
    assert Membership("digits", count(1), [new, old]).seats == [new]
    assert Membership("digits", count(1), [other, new, old]).seats == [other]


def test_empty_places_are_named_with_who_had_them() -> None:
    door = Door(workers=4)
    door.join("a", rank=0)
    b = door.join("b", rank=7, lease=2.0).member
    c = door.join("c", rank=1).member
    assert [(rank, gone) for rank, gone in door.members.missing(4)] == [(2, None)]
    door.members.expire(2.0)
    door.members.leave(c, 3.0)
    missing = door.members.missing(4)
    assert [(rank, gone and (gone.member, gone.at, gone.why)) for rank, gone in missing] == [
        (1, (c, 3.0, "it has left")),
        (2, None),
        (7, (b, 2.0, "its lease of 2 s has run out")),
    ]
    assert door.members.missing(None) == []
    door.join("b", rank=7, now=3.0)
    assert [rank for rank, _ in door.members.missing(4)] == [1, 2]
    for rank in range(100, 200):
        door.policy = Synchronous(None)
        door.members.leave(door.join(f"n{rank}", rank=rank).member, 4.0)
    assert len(door.members._gone) == GONE_MAX


def test_requests_without_an_id_are_never_repeats() -> None:
    door = Door()
    assert door.join(request="").member != door.join(request="").member


def test_a_lease_runs_out_unless_renewed() -> None:
    door = Door()
    a, b = door.join("a", lease=2.0).member, door.join("b", lease=2.0).member
    door.members.renew(a, 1.5)
    assert door.members.expire(1.9) == []
    assert door.members.expire(2.0) == [b]
    assert door.members.expire(2.0) == []
    assert door.members.expire(3.5) == [a]
    with refused("NOT_A_MEMBER", "its lease of 2 s has run out"):
        door.members.renew(a, 3.6)


def test_the_lease_of_one_that_left_still_ends() -> None:
    door = Door()
    a = door.join("a", lease=2.0).member
    assert door.members.leave(a, 0.0)
    assert not door.members.leave(a, 0.0)
    assert len(door.members) == 0
    assert door.members.expire(2.0) == [a]


@pytest.mark.parametrize("name", ["a/b", "a b", "ä", "x" * 129, "\n"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="name must be 1 to 128"):
        Door().join(name)


@pytest.mark.parametrize("lease", [0.0, 0.5, 3601.0, float("nan"), -1.0])
def test_leases_out_of_range_are_refused(lease: float) -> None:
    with pytest.raises(InvalidArgument, match="lease must be"):
        Door().join(lease=lease)


def test_ranks_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="rank must be"):
        Door().join(rank=1 << 20)


def test_metrics_are_bounded() -> None:
    check_metrics({"loss": 1.0})
    with pytest.raises(InvalidArgument, match="metrics"):
        check_metrics({str(i): 0.0 for i in range(METRICS_MAX + 1)})
    with pytest.raises(InvalidArgument, match="metrics"):
        check_metrics({"x" * 65: 0.0})
    with pytest.raises(InvalidArgument, match="metrics"):
        check_metrics({"a\nb": 0.0})
