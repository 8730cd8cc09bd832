"""Names, ranks, incarnations and leases."""

from __future__ import annotations

from itertools import count

import pytest

from stepd.errors import FailedPrecondition, InvalidArgument
from stepd.limits import METRICS_MAX
from stepd_server.coordinator.membership import Membership, Seat, check_metrics
from stepd_server.coordinator.policy import Synchronous
from stepd_server.coordinator.vocabulary import Member


class Door:
    """A membership with defaults."""

    def __init__(self, workers: int | None = None) -> None:
        self.members = Membership("digits", count(1))
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
    ) -> Seat:
        request_id = f"request {next(self.requests)}" if request is None else request
        return self.members.join(
            self.policy, name=name, rank=rank, lease=lease, request_id=request_id, now=now, joined_at=now
        )[0]


def test_ranks_are_the_lowest_that_are_free() -> None:
    door = Door()
    assert [door.join().member.rank for _ in range(3)] == [0, 1, 2]
    door.members.leave(door.members.seats[1].member)
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
    with pytest.raises(FailedPrecondition, match=r"rank 2 .* belongs to worker 'a'") as caught:
        door.join("b", rank=2)
    assert caught.value.reason == "RANK_TAKEN"


def test_a_full_run_is_refused_with_who_is_in_it() -> None:
    door = Door(workers=2)
    door.join("a")
    door.join("b")
    with pytest.raises(FailedPrecondition, match="takes 2 workers and has them: a, b") as caught:
        door.join("c")
    assert caught.value.reason == "RUN_FULL"


def test_a_name_that_joins_again_takes_its_own_place_over() -> None:
    door = Door(workers=2)
    first = door.join("a")
    door.join("b")
    again = door.join("a")
    assert again.member == Member("a", 3, first.member.rank)
    with pytest.raises(FailedPrecondition) as caught:
        door.members.renew(first.member, 1.0)
    assert caught.value.reason == "NOT_A_MEMBER"
    assert not door.members.leave(first.member)
    assert len(door.members) == 2
    assert door.join("a", rank=9).member.rank == 9


def test_a_repeated_request_gets_the_earlier_answer() -> None:
    door = Door(workers=1)
    seat = door.join(request="r", now=0.0)
    assert door.join(request="r", now=5.0) is seat
    assert seat.expires == 15.0
    door.members.leave(seat.member)
    assert door.join(request="r").member != seat.member


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
    with pytest.raises(FailedPrecondition) as caught:
        door.members.renew(a, 3.6)
    assert caught.value.reason == "NOT_A_MEMBER"


def test_the_lease_of_one_that_left_still_ends() -> None:
    door = Door()
    a = door.join("a", lease=2.0).member
    assert door.members.leave(a)
    assert not door.members.leave(a)
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
