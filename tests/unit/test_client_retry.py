"""How long and how often something is tried again."""

from __future__ import annotations

import pytest

from stepd.errors import (
    Aborted,
    DeadlineExceeded,
    InvalidArgument,
    NonFiniteGradient,
    RunRewound,
    StepdError,
    Unavailable,
)
from stepd.retry import PAUSE_S_MAX, PAUSE_S_MIN, Patience, passes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def patience(clock: Clock, retry_for: float = 10.0) -> Patience:
    return Patience("Push to shard 1", "10.0.0.1:7071", retry_for, clock)


def test_only_what_may_pass_by_itself_is_tried_again() -> None:
    assert all(passes(error) for error in (Unavailable("x"), Aborted("x"), DeadlineExceeded("x")))
    for error in (InvalidArgument("x"), NonFiniteGradient("x"), RunRewound("x"), StepdError("x")):
        assert not passes(error)
        with pytest.raises(type(error)):
            patience(Clock()).pause(error)


def test_pauses_grow_and_are_never_the_same_for_all() -> None:
    clock = Clock()
    one, pauses = patience(clock, 120.0), list[float]()
    for _ in range(20):
        waited = clock.now - 100.0
        pauses.append(one.pause(Unavailable("x")))
        # Whoever is back is found soon: within half of the time for which there was nobody.
        assert pauses[-1] <= max(PAUSE_S_MIN, waited / 2)
        clock.now += pauses[-1]
    assert PAUSE_S_MIN / 2 <= pauses[0] <= PAUSE_S_MIN
    assert max(pauses) <= PAUSE_S_MAX
    assert min(pauses[-4:]) >= PAUSE_S_MAX / 2
    assert len(set(pauses)) == 20


def test_it_gives_up_after_its_time_and_says_what_was_tried_for_how_long() -> None:
    clock = Clock()
    one = patience(clock)
    one.pause(Unavailable("connection refused"))
    clock.now += 9
    one.pause(Unavailable("connection refused"))
    clock.now += 2
    with pytest.raises(Unavailable) as caught:
        one.pause(Unavailable("connection refused", reason="RUN_RECOVERING", run="a"))
    assert str(caught.value) == (
        "Push to shard 1 (10.0.0.1:7071) failed 3 times in 11.0 s (retry_for=10), at last with: connection refused"
    )
    assert caught.value.reason == "RUN_RECOVERING"
    assert caught.value.details == {
        "run": "a",
        "target": "10.0.0.1:7071",
        "call": "Push to shard 1",
        "tries": 3,
        "waited_s": 11.0,
    }


def test_a_sign_of_life_starts_the_time_anew() -> None:
    clock = Clock()
    one = patience(clock)
    for _ in range(10):
        one.pause(Unavailable("x"))
        clock.now += 9
        one.alive()


def test_a_try_without_an_answer_has_failed_from_its_start() -> None:
    clock = Clock()
    one = patience(clock)
    one.begin()
    clock.now += 30
    with pytest.raises(DeadlineExceeded, match=r"1 times in 30\.0 s"):
        one.pause(DeadlineExceeded("no answer"))


def test_a_long_wait_before_a_failure_is_not_counted() -> None:
    clock = Clock()
    one = patience(clock)
    one.begin()
    clock.now += 30
    one.pause(Unavailable("connection lost"))


def test_without_time_there_is_one_try() -> None:
    with pytest.raises(Unavailable, match="failed 1 times"):
        patience(Clock(), 0).pause(Unavailable("x"))
