"""Rates that fall by what workers report: from the report to the rate, and over the death of a coordinator."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest

from stepd import specs
from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.limits import OBSERVATIONS_MAX
from stepd.observations import Observations
from stepd.rules import SGD
from stepd.schedules import Constant, ReduceOnPlateau
from stepd.v1 import coordinator_pb2 as pb
from stepd_server.coordinator.decision import rates
from stepd_server.coordinator.membership import Membership
from stepd_server.coordinator.plateaus import Plateaus
from stepd_server.coordinator.policy import Synchronous
from stepd_server.coordinator.seats import Seat

from .coordinator_bench import Fleet, digits, play, refused

HALVES = ReduceOnPlateau(patience=0, factor=0.5)


def spec(own: ReduceOnPlateau | None = None) -> RunSpec:
    """Groups with the run's plateau, with none, and with another one."""
    parameter = ParameterSpec("w", (4,), np.dtype(np.float32))
    groups = (GroupSpec(SGD(0.4)), GroupSpec(SGD(0.2), Constant()), GroupSpec(SGD(0.1), own))
    return RunSpec("run", (parameter,), groups, HALVES)


def test_every_metric_counts_for_every_group_on_a_plateau() -> None:
    plateaus = Plateaus(spec(ReduceOnPlateau(patience=1, factor=0.1)))
    assert rates(plateaus.in_effect, 5) == (0.4, 0.2, 0.1)
    assert plateaus.observe([1.0])
    assert not plateaus.observe([])
    plateaus.observe([1.0, 1.0])
    assert rates(plateaus.in_effect, 5) == pytest.approx((0.1, 0.2, 0.01))
    assert rates(Plateaus(plateaus.spec, plateaus.to_bytes()).in_effect, 5) == rates(plateaus.in_effect, 5)


def test_a_rate_that_is_set_is_what_falls_from_then_on() -> None:
    """For the groups that it is set for; another schedule starts anew."""
    plateaus = Plateaus(spec())
    plateaus.observe([1.0, 1.0])
    assert rates(plateaus.in_effect, 0) == (0.2, 0.2, 0.05)
    plateaus.change(spec(), rated=[0])
    assert rates(plateaus.in_effect, 0) == (0.4, 0.2, 0.05)
    plateaus.observe([1.0])
    assert rates(plateaus.in_effect, 0) == (0.2, 0.2, 0.025)
    plateaus.change(spec(ReduceOnPlateau(factor=0.1)), rated=())
    assert rates(plateaus.in_effect, 0) == (0.2, 0.2, 0.1)


def test_a_run_without_plateaus_is_left_alone() -> None:
    """The very spec."""
    plain = RunSpec("run", spec().parameters, spec().groups)
    plateaus = Plateaus(plain)
    assert not plateaus.observe([1.0])
    assert plateaus.in_effect is plain


@pytest.mark.parametrize(
    ("reports", "observed"),
    [
        ([{"loss": 1.0, "accuracy": 2.0}, {"accuracy": 3.0}, {"loss": 4.0}], [1.0, 4.0]),
        ([{"error": 1.0}, {"loss": 2.0}, {"error": 3.0, "loss": 4.0}], [1.0, 3.0]),
        ([{"a": 1.0, "b": 2.0}, {"b": 3.0}], [3.0]),
        ([{}], []),
    ],
)
def test_the_metric_is_the_loss_or_the_only_one(reports: list[dict[str, float]], observed: list[float]) -> None:
    """What the first report that has one says."""
    observations = Observations()
    for report in reports:
        observations.add(report)
    assert list(observations.waiting) == observed


def test_observations_wait_until_they_have_arrived() -> None:
    """With the number of the first of them; so many are kept."""
    observations = Observations()
    for value in range(3):
        observations.add({"loss": float(value)})
    observations.drop_to(2)
    assert (observations.before, list(observations.waiting), observations.end) == (2, [2.0], 3)
    for value in range(OBSERVATIONS_MAX):
        observations.add({"loss": float(value)})
    assert (observations.before, len(observations.waiting)) == (3, OBSERVATIONS_MAX)


def test_of_several_workers_the_lowest_rank_that_tells_something_counts() -> None:
    membership = Membership("run", count(1))

    def join(name: str) -> Seat:
        fields = {"rank": None, "lease": 10.0, "request_id": "", "now": 0.0, "joined_at": 0.0}
        return membership.join(Synchronous(None), name=name, **fields)[0]

    a, b, c = map(join, "abc")
    assert list(membership.observe(b, [1.0, 2.0], 0)) == [1.0, 2.0]
    assert list(membership.observe(b, [2.0, 3.0], 1)) == [3.0]  # sent again
    assert list(membership.observe(b, [9.0], 5)) == [9.0]  # some were dropped
    assert not membership.observe(c, [4.0], 0)
    assert not membership.observe(a, [], 0)
    assert list(membership.observe(a, [5.0], 0)) == [5.0]
    assert not membership.observe(b, [6.0], 6)
    membership.leave(a.member, 0.0)
    assert list(membership.observe(b, [7.0], 7)) == [7.0]


def test_a_coordinator_that_starts_again_goes_on(tmp_path: Path) -> None:
    """With the reduced rate and what it remembers of the metrics; a renewal that is sent again counts once."""

    async def scenario(fleet: Fleet) -> None:
        run = digits()
        run.schedule.CopyFrom(specs.schedule_to_proto(HALVES))
        run.groups[0].optimizer.hyperparameters["lr"].number = 0.4
        await fleet.create(run)
        member = (await fleet.join()).member
        renewal = pb.RenewLeaseRequest(run="digits", member=member, observed=[1.0, 1.0])
        for _ in range(2):
            await fleet.stub.RenewLease(renewal)
            assert list((await fleet.state()).rates) == [0.2]
        fleet.allow()
        decision = (await fleet.until(lambda state: state.step == 1)).last_decision
        assert decision.groups[0].lr == 0.2
        async with refused("INVALID_ARGUMENT", "at most 1024"):
            many = pb.RenewLeaseRequest(run="digits", member=member, observed=[1.0] * 1025)
            await fleet.stub.RenewLease(many)
        await fleet.stop_coordinator()
        await fleet.start_coordinator()
        await fleet.register()
        assert list((await fleet.state()).rates) == [0.2]
        member = (await fleet.join()).member
        await fleet.stub.RenewLease(pb.RenewLeaseRequest(run="digits", member=member, observed=[1.0]))
        assert list((await fleet.state()).rates) == [0.1]
        update = pb.UpdateRunRequest(run="digits", rate=pb.RateChange(lr=0.3))
        assert list((await fleet.stub.UpdateRun(update)).run.rates) == [0.3]

    play(tmp_path, scenario)
