"""What a fleet of this version can train. Pure."""

from __future__ import annotations

from stepd.definitions import RunSpec
from stepd.errors import InvalidArgument
from stepd.rules import Reach
from stepd.schedules import ReduceOnPlateau

__all__ = ["check_trainable"]


def check_trainable(spec: RunSpec) -> None:
    """Raise InvalidArgument for rules and schedules that the shared side knows and the servers do not carry out yet,
    and for parameters that their rule cannot update."""
    for index, group in enumerate(spec.groups):
        rule, schedule = group.optimizer, spec.schedule_of(index)
        if rule.reach is not Reach.ELEMENTWISE:
            _refuse("optimizer", type(rule).__name__, "a rule that updates each element by itself")
        if isinstance(schedule, ReduceOnPlateau) or schedule.momentum(0) is not None:
            _refuse("schedule", type(schedule).__name__, "a schedule of the step alone that leaves momentum as it is")
    for parameter in spec.parameters:
        spec.groups[parameter.group].optimizer.check_parameter(parameter.name, parameter.shape)


def _refuse(field: str, given: str, expected: str) -> None:
    raise InvalidArgument(
        f"{field}: servers of this version need {expected}, got {given}", field=field, expected=expected, given=given
    )
