"""What an owner may change on a live run."""

from __future__ import annotations

import numpy as np
import pytest

from stepd import specs
from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.errors import FailedPrecondition, InvalidArgument
from stepd.policies import Clip, ClipNorm, Sync
from stepd.rules import SGD, AdamW
from stepd.schedules import Cosine, Linear, Schedule, Warmup
from stepd.v1 import run_pb2
from stepd.v1.coordinator_pb2 import RateChange, UpdateRunRequest
from stepd_server.coordinator.changes import changed
from stepd_server.coordinator.decision import rates


def message(schedule: Schedule | None = None) -> run_pb2.RunSpec:
    return specs.run_to_proto(
        RunSpec(
            name="digits",
            parameters=(ParameterSpec("w", (4,), np.dtype(np.float32)),),
            groups=(GroupSpec(SGD(lr=0.1)), GroupSpec(AdamW(lr=0.2), schedule=Warmup(4))),
            schedule=schedule,
            clip=Clip(ClipNorm(1.0)),
        )
    )


def apply(request: UpdateRunRequest, *, schedule: Schedule | None = None, step: int = 0, members: int = 0) -> RunSpec:
    before = message(schedule)
    after, spec = changed(before, request, step=step, members=members)
    assert before == message(schedule), "the present spec is not touched"
    assert specs.run_from_proto(after) == spec
    return spec


def test_a_rate_is_that_of_the_next_step_and_the_schedule_goes_on_from_there() -> None:
    spec = apply(UpdateRunRequest(rate=RateChange(lr=0.3)), schedule=Linear(total_steps=10), step=5)
    assert rates(spec, 5) == (0.3, 0.3)
    assert rates(spec, 6)[0] == pytest.approx(0.3 / 5 * 4)


def test_a_rate_of_one_group_leaves_the_others() -> None:
    spec = apply(UpdateRunRequest(rate=RateChange(lr=0.3, group=1)), step=1)
    assert rates(spec, 1) == (0.1, 0.3)


def test_a_schedule_and_a_rate_together_give_the_rate() -> None:
    request = UpdateRunRequest(
        schedule=specs.schedule_to_proto(Cosine(total_steps=10)), rate=RateChange(lr=0.05, group=0)
    )
    assert rates(apply(request, step=3), 3)[0] == 0.05


def test_a_rate_that_the_schedule_cannot_give_is_refused() -> None:
    ended = Linear(total_steps=4, min_lr=0.01)
    with pytest.raises(FailedPrecondition, match="cannot be set") as caught:
        apply(UpdateRunRequest(rate=RateChange(lr=0.3, group=0)), schedule=ended, step=4)
    assert caught.value.reason == "RATE_FIXED"
    with pytest.raises(InvalidArgument, match=r"at least 0\.005"):
        apply(UpdateRunRequest(rate=RateChange(lr=0.001, group=0)), schedule=ended, step=2)
    with pytest.raises(InvalidArgument):
        apply(UpdateRunRequest(rate=RateChange(lr=float("nan"))))
    with pytest.raises(InvalidArgument, match="one of 2 groups"):
        apply(UpdateRunRequest(rate=RateChange(lr=0.1, group=2)))


def test_a_clip_is_changed_and_taken_away() -> None:
    assert apply(UpdateRunRequest(clip=specs.clip_to_proto(ClipNorm(3.0)))).clip == Clip(ClipNorm(3.0))
    assert apply(UpdateRunRequest(drop_clip=True)).clip is None
    assert apply(UpdateRunRequest()).clip == Clip(ClipNorm(1.0))
    with pytest.raises(InvalidArgument, match="drop_clip"):
        apply(UpdateRunRequest(drop_clip=True, clip=specs.clip_to_proto(ClipNorm(3.0))))


def test_no_fewer_workers_than_there_are() -> None:
    request = UpdateRunRequest(sync=specs.sync_to_proto(Sync(workers=2)))
    assert apply(request, members=2).sync == Sync(workers=2)
    with pytest.raises(FailedPrecondition, match="exactly 2 workers: 3 have joined") as caught:
        apply(request, members=3)
    assert caught.value.reason == "RUN_FULL"


def test_what_is_not_valid_is_refused_as_at_creation() -> None:
    with pytest.raises(InvalidArgument, match="max_norm"):
        apply(UpdateRunRequest(clip=run_pb2.ClipSpec(max_norm=-1.0)))
    with pytest.raises(InvalidArgument, match="Cosinus"):
        apply(UpdateRunRequest(schedule=run_pb2.ScheduleSpec(rule="Cosinus")))
