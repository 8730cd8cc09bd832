"""What an owner may change on a live run: UpdateRun as a function from spec to spec. Pure."""

from __future__ import annotations

from dataclasses import replace

from stepd import specs
from stepd.definitions import RunSpec
from stepd.errors import FailedPrecondition, InvalidArgument
from stepd.hyperparameters import with_hyperparameters
from stepd.schedules import base_for
from stepd.settings import refuse
from stepd.v1 import coordinator_pb2, run_pb2
from stepd_server.coordinator.abilities import check_trainable


def changed(
    message: run_pb2.RunSpec, request: coordinator_pb2.UpdateRunRequest, *, step: int, members: int
) -> tuple[run_pb2.RunSpec, RunSpec]:
    """The spec with the changes, in both forms.

    Args:
        message: the present spec; is not changed.
        request: what to change.
        step: steps applied: a rate is set as of here.
        members: how many workers have joined.
    """
    after = run_pb2.RunSpec()
    after.CopyFrom(message)
    if request.HasField("clip"):
        if request.drop_clip:
            refuse(f"run {message.name!r}", "drop_clip", True, "false together with clip")
        after.clip.CopyFrom(request.clip)
    if request.drop_clip:
        after.ClearField("clip")
    if request.HasField("sync"):
        after.sync.CopyFrom(request.sync)
    if request.HasField("schedule"):
        after.schedule.CopyFrom(request.schedule)
    if request.HasField("rate"):
        _set_rate(after, specs.run_from_proto(after), request.rate, step)
    spec = specs.run_from_proto(after)
    check_trainable(spec)
    workers = getattr(spec.sync, "workers", None)
    if workers is not None and workers < members:
        raise FailedPrecondition(
            f"run {spec.name!r} cannot take exactly {workers} workers: {members} have joined",
            reason="RUN_FULL",
            run=spec.name,
            expected=workers,
            given=members,
        )
    return after, spec


def with_state(
    message: run_pb2.RunSpec, request: coordinator_pb2.LoadStateRequest, *, step: int
) -> tuple[run_pb2.RunSpec, RunSpec]:
    """The spec with the hyperparameters that come with a state, in both forms.

    Args:
        message: the present spec; is not changed.
        request: with the changes of each group.
        step: steps applied: rates are set as of here.
    """
    after = run_pb2.RunSpec()
    after.CopyFrom(message)
    spec = specs.run_from_proto(message)
    if request.groups and len(request.groups) != len(spec.groups):
        refuse(f"run {spec.name!r}", "groups", len(request.groups), f"{len(spec.groups)} groups, or none")
    for index, change in enumerate(request.groups):
        before = spec.groups[index].optimizer
        values = {name: specs.hyperparameter_from_proto(value) for name, value in change.hyperparameters.items()}
        rule = with_hyperparameters(f"run {spec.name!r}: group {index}", before, values)
        after.groups[index].optimizer.CopyFrom(specs.optimizer_to_proto(replace(rule, lr=before.lr)))
        # A rate that is what it is already is no change, also where the schedule leaves no choice.
        if "lr" in values and rule.lr != spec.schedule_of(index).rate(step, before.lr):
            _set_rate(after, spec, coordinator_pb2.RateChange(lr=rule.lr, group=index), step)
    changed_spec = specs.run_from_proto(after)
    check_trainable(changed_spec)
    return after, changed_spec


def _set_rate(after: run_pb2.RunSpec, spec: RunSpec, change: coordinator_pb2.RateChange, step: int) -> None:
    """Set base rates so that the schedule gives the rate now, and goes on from there."""
    if change.HasField("group") and change.group >= len(spec.groups):
        refuse(f"run {spec.name!r}", "group", change.group, f"the index of one of {len(spec.groups)} groups")
    for group in [change.group] if change.HasField("group") else range(len(spec.groups)):
        schedule = spec.schedule_of(group)
        base = base_for(schedule, step, change.lr)
        if base < 0:
            lowest = schedule.rate(step, 0.0)
            raise InvalidArgument(
                f"the rate of group {group} cannot be set to {change.lr} at step {step}: {schedule!r} gives at least "
                f"{lowest} there",
                group=group,
                step=step,
                expected=lowest,
                given=change.lr,
            )
        after.groups[group].optimizer.hyperparameters["lr"].number = base
