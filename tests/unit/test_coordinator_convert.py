"""What shards send and cannot be: the run stops with a reason, rather than wait for something better."""

from __future__ import annotations

from pathlib import Path

import pytest

from stepd.v1 import coordinator_pb2 as pb
from stepd.v1 import round_pb2, shard_control_pb2
from stepd_server import exact
from stepd_server.coordinator.convert import Senseless, measures_from_proto, sums_from_proto
from stepd_server.exact import ExactSum

from .coordinator_bench import Fleet, digits, play

LONG = round_pb2.ExactSum(units=bytes(100_000))


def measured(*sums: shard_control_pb2.TensorSums) -> list[shard_control_pb2.MeasureRoundResponse]:
    return [shard_control_pb2.MeasureRoundResponse(sums=[one]) for one in sums]


def test_measures_are_by_parameter() -> None:
    total = ExactSum()
    total.add(2.0)
    one = shard_control_pb2.TensorSums(parameter=3, first=total.to_proto(), second=ExactSum().to_proto())
    assert measures_from_proto(measured(one)) == {3: (total, ExactSum())}
    with pytest.raises(Senseless, match="parameter 3 is measured twice"):
        measures_from_proto(measured(one, one))


def test_a_sum_is_not_longer_than_sums_are() -> None:
    with pytest.raises(Senseless, match="at most"):
        measures_from_proto(measured(shard_control_pb2.TensorSums(parameter=0, first=LONG)))
    part = round_pb2.NormPart(powers=LONG)
    with pytest.raises(Senseless, match="at most"):
        sums_from_proto(round_pb2.GatheredSums(run_norms=[part], group_norms=[part]), 1)


def test_sums_are_those_of_the_runs_groups() -> None:
    part = round_pb2.NormPart(powers=ExactSum().to_proto())
    with pytest.raises(Senseless, match="of 2 and 1 groups, the run has 2"):
        sums_from_proto(round_pb2.GatheredSums(run_norms=[part, part], group_norms=[part]), 2)


def test_a_run_whose_sums_make_no_sense_stops_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.create(digits(clip=1.0))
        await fleet.join()
        monkeypatch.setattr(exact, "_UNIT_BYTES_MAX", 1)
        fleet.allow()
        state = await fleet.until(lambda state: state.status == pb.RUN_STATUS_LOST)
        assert "gave sums that make no sense: an exact sum has at most 1 bytes" in state.problem

    play(tmp_path, scenario)
