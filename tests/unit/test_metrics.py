"""What is counted for metrics, and how it reads as text."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stepd_server.coordinator.events import Arrived, MemberJoined, MemberLeft, MemberLost
from stepd_server.coordinator.tally import Tally
from stepd_server.coordinator.vocabulary import (
    Decision,
    GroupRates,
    Member,
    Nonfinite,
    Outcome,
    Receipt,
    Refusal,
    RoundId,
)
from stepd_server.metrics import catalogue
from stepd_server.metrics.catalogue import Sample
from stepd_server.metrics.durations import BOUNDS, Durations
from stepd_server.metrics.exposition import to_text
from stepd_server.metrics.fleet import merge
from stepd_server.shard.phases import Phases

ANN, BOB = Member("ann", 1, 0), Member("bob", 2, 1)


def decision(round_number: int, step: int, outcome: Outcome = Outcome.APPLIED, **fields: object) -> Decision:
    return Decision(
        **{
            "id": RoundId(round_number, 0),
            "outcome": outcome,
            "step": step,
            "groups": (GroupRates(0.1),),
            "grad_norm": 1.0,
            "clip_scale": 1.0,
            "members": (ANN, BOB),
            **fields,
        }
    )


def values(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every series of a text, as Prometheus' own parser reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


# --- Durations ------------------------------------------------------------------------------------------------------


def test_a_duration_is_in_every_bucket_that_it_does_not_pass() -> None:
    taken = Durations()
    for seconds in (0.0, 0.005, 0.0051, 1e6):
        taken.add(seconds)
    buckets = dict(taken.buckets)
    assert (buckets["0.001"], buckets["0.005"], buckets["0.01"], buckets["300.0"], buckets["+Inf"]) == (1, 2, 3, 3, 4)
    assert (taken.count, taken.seconds) == (4, 0.0 + 0.005 + 0.0051 + 1e6)
    assert [float(name) for name, _ in taken.buckets] == [*BOUNDS, math.inf]


# --- Phases ---------------------------------------------------------------------------------------------------------


class Steps:
    """Phases under a clock that is set by hand; `seconds` are those of each phase so far."""

    def __init__(self) -> None:
        self.now = 0.0
        self.phases = Phases(lambda: self.now)

    def at(self, now: float, what: str, *arguments: object) -> None:
        self.now = now
        getattr(self.phases, what)(*arguments)

    @property
    def seconds(self) -> dict[str, list[float]]:
        return {phase: [taken.count, taken.seconds] for phase, taken in self.phases.taken.items()}


def test_phases_follow_one_another() -> None:
    steps = Steps()
    steps.at(10, "began", (0, 0))
    steps.at(11, "began", (0, 0))
    steps.at(12, "whole")
    steps.at(15, "whole")
    steps.at(16, "decided")
    steps.at(17, "sent")  # a reader of the version before
    steps.at(20, "applied")
    steps.at(28, "sent")
    steps.at(29, "sent")
    assert steps.seconds == {"receive": [1, 2], "wait": [1, 3], "reduce": [1, 1], "apply": [1, 4], "send": [1, 8]}


def test_an_attempt_that_starts_over_is_counted_from_its_new_beginning() -> None:
    steps = Steps()
    steps.at(10, "began", (0, 0))
    steps.at(12, "whole")
    steps.at(100, "began", (0, 1))
    steps.at(101, "whole")
    steps.at(101, "whole")
    steps.at(103, "decided")
    assert steps.seconds == {"receive": [1, 1], "wait": [1, 0], "reduce": [1, 2], "apply": [0, 0], "send": [0, 0]}


def test_a_round_without_contributions_has_no_phases() -> None:
    steps = Steps()
    steps.at(10, "began", (0, 0))
    steps.at(12, "decided")
    assert all(count == 0 for count, _ in steps.seconds.values())


# --- Tally ----------------------------------------------------------------------------------------------------------


def test_decisions_are_counted_by_their_outcome() -> None:
    tally = Tally()
    tally.decided(decision(0, 1), 0)
    tally.decided(decision(1, 2, clip_scale=0.5), 0)
    tally.decided(decision(2, 3, groups=(GroupRates(0.1), GroupRates(0.1, clip_scale=0.5))), 0)
    bad = (Nonfinite(ANN, 0),)
    tally.decided(decision(3, 3, Outcome.SKIPPED, nonfinite=bad, grad_norm=math.nan), 0)
    tally.decided(decision(4, 3, Outcome.FAILED, nonfinite=bad, grad_norm=math.nan), 0)
    tally.decided(decision(5, 3, Outcome.SKIPPED, grad_norm=math.inf), 0)
    tally.decided(decision(6, 3, Outcome.SKIPPED, members=(), grad_norm=0.0), 0)
    assert tally.clipped == 2
    assert tally.skipped == {"nonfinite": 2, "overflow": 1, "nobody": 1}


def test_contributions_are_counted_by_worker_for_as_long_as_it_is_a_member() -> None:
    tally = Tally()
    tally.take_in(MemberJoined(ANN), 0)
    tally.take_in(MemberJoined(BOB), 0)
    tally.decided(decision(0, 1), 0)
    tally.decided(decision(1, 2, members=(ANN,), quarantined=(BOB,)), 0)
    assert tally.contributions == {"accepted": 3, "quarantined": 1}
    assert tally.workers[0].contributions == {"accepted": 2}
    assert tally.workers[1].contributions == {"accepted": 1, "quarantined": 1}
    tally.take_in(MemberLeft(ANN), 0)
    tally.take_in(MemberLost(Member("bob", 1, 1)), 0)  # an older incarnation
    assert list(tally.workers) == [1]
    tally.decided(decision(2, 3), 0)  # one who left may still have contributed
    assert list(tally.workers) == [1]
    assert tally.contributions["accepted"] == 5
    tally.take_in(MemberJoined(Member("bob", 7, 1)), 0)
    assert not tally.workers[1].contributions


def test_who_was_there_before_is_counted_and_so_is_what_comes_again() -> None:
    tally = Tally(step=10, members=(ANN, BOB))
    tally.decided(decision(10, 11, members=(ANN,), quarantined=(BOB,)), 0)
    tally.repeated(0, {("ann", 1): 2, ("bob", 1): 9, ("x", 1): 1})  # bob's of an older incarnation
    tally.repeated(1, {("ann", 1): 3})
    tally.repeated(1, {("ann", 1): 1})  # it was started again
    assert tally.counts_of(ANN) == {"accepted": 1, "duplicate": 3}
    assert tally.counts_of(BOB) == {"quarantined": 1}
    assert tally.counts_of(Member("ann", 7, 0)) == {}


def test_what_rounds_do_not_take_is_counted_once() -> None:
    tally = Tally(members=(ANN, BOB))
    stale = (
        Refusal(ANN, 3, Receipt.STALE),
        Refusal(BOB, 1, Receipt.DUPLICATE),
        Refusal(Member("bob", 1, 1), 1, Receipt.LATE),
    )
    tally.refused(stale[:1])
    tally.refused(stale)  # told again, with more
    tally.refused((Refusal(ANN, 4, Receipt.STALE),))
    tally.decided(decision(0, 1, members=(ANN,), late=(BOB,)), 7.0)
    tally.repeated(0, {("bob", 2): 2})
    tally.repeated(1, {("bob", 2): 5})
    assert tally.counts_of(ANN) == {"accepted": 1, "stale": 2}
    assert tally.counts_of(BOB) == {"late": 1, "duplicate": 5}
    assert tally.contributions == {"accepted": 1, "late": 1, "stale": 2, "duplicate": 5}
    assert tally.lag_of(tally.workers[1]) == 1  # late is not taken


def test_lag_is_in_steps_since_the_last_contribution_or_the_join() -> None:
    tally = Tally(step=10)
    tally.take_in(MemberJoined(ANN), 0)
    tally.take_in(MemberJoined(BOB), 0)
    tally.decided(decision(10, 11, members=(ANN,)), 0)
    tally.decided(decision(11, 12, members=(ANN,)), 0)
    assert [tally.lag_of(worker) for worker in tally.workers.values()] == [0, 2]
    tally.decided(decision(12, 13), 0)
    assert [tally.lag_of(worker) for worker in tally.workers.values()] == [0, 0]


def test_waiting_is_from_the_whole_contribution_to_the_decision() -> None:
    tally = Tally()
    tally.take_in(MemberJoined(ANN), 0)
    tally.take_in(MemberJoined(BOB), 0)
    for shard, now in enumerate((1.0, 2.0)):
        tally.take_in(Arrived(shard, RoundId(0, 0), ANN), now)
    tally.take_in(Arrived(0, RoundId(0, 0), BOB), 5.0)
    tally.decided(decision(0, 1), 6.0)
    assert [worker.waited for worker in tally.workers.values()] == [4.0, 1.0]
    tally.decided(decision(1, 2), 99.0)  # nothing is left over from the round before
    assert [worker.waited for worker in tally.workers.values()] == [4.0, 1.0]


# --- Text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ['say "hi"', "back\\slash", "two\nlines", "größe", "a} 1\nb{", ""])
def test_labels_are_escaped(run: str) -> None:
    assert values(to_text([Sample(catalogue.STEPS, (run,), 3)])) == {("stepd_steps_total", (("run", run),)): 3}


@pytest.mark.parametrize("value", [0, 1e-300, 1.5, 2**53, math.inf])
def test_values_are_read_as_they_were(value: float) -> None:
    assert values(to_text([Sample(catalogue.GRAD_NORM, ("r",), value)])) == {
        ("stepd_grad_norm", (("run", "r"),)): value
    }
    assert math.isnan(next(iter(values(to_text([Sample(catalogue.GRAD_NORM, ("r",), math.nan)])).values())))


def test_texts_of_processes_become_one_with_every_family_once() -> None:
    taken = Durations()
    taken.add(0.5)
    parts = [
        to_text([Sample(catalogue.STEPS, ("a",), 1), Sample(catalogue.WORKERS, ("a",), 2)]),
        to_text([Sample(catalogue.STEP_SECONDS, ("a", "wait", "0"), taken)]),
        b"",
        to_text(
            [
                Sample(catalogue.STATE_BYTES, ("a", "buffers", "1"), 7),
                Sample(catalogue.STEP_SECONDS, ("a", "wait", "1"), taken),
            ]
        ),
    ]
    whole = merge(parts)
    assert values(whole) == {key: value for part in parts for key, value in values(part).items()}
    families = [line.split()[2] for line in whole.decode().splitlines() if line.startswith("# TYPE")]
    assert families == ["stepd_steps_total", "stepd_workers", "stepd_step_seconds", "stepd_state_bytes"]
    names = [line.split("{")[0] for line in whole.decode().splitlines() if line.startswith("stepd_step_seconds")]
    assert names.count("stepd_step_seconds_count") == 2


def test_names_are_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in catalogue.ALL}) == len(catalogue.ALL)
    for metric in catalogue.ALL:
        assert metric.name.startswith("stepd_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert not set(metric.labels) & {"le", "job", "instance"}
