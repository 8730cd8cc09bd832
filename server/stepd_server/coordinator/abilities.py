"""What a fleet of this version can train. Pure."""

from __future__ import annotations

from stepd.definitions import ParameterSpec, RunSpec
from stepd.errors import InvalidArgument, ResourceExhausted
from stepd.limits import WHOLE_ELEMENTS_MAX
from stepd.rules import Reach, Rule
from stepd.schedules import ReduceOnPlateau
from stepd_server.coordinator.cycling import check_cycled

__all__ = ["check_trainable"]


def check_trainable(spec: RunSpec) -> None:
    """Raise InvalidArgument for schedules that the shared side knows and the servers do not carry out yet, for rules
    that cannot follow their schedule, and for parameters that their rule cannot update; ResourceExhausted for
    parameters that it must see whole and no shard should."""
    for index, group in enumerate(spec.groups):
        schedule = spec.schedule_of(index)
        if isinstance(schedule, ReduceOnPlateau):
            _refuse("schedule", type(schedule).__name__, "a schedule of the step alone")
        check_cycled(group.optimizer, schedule)
    for parameter in spec.parameters:
        rule = spec.groups[parameter.group].optimizer
        rule.check_parameter(parameter.name, parameter.shape)
        if rule.reach is Reach.WHOLE:
            _check_size(rule, parameter)


def _check_size(rule: Rule, parameter: ParameterSpec) -> None:
    if parameter.size > WHOLE_ELEMENTS_MAX:
        name = type(rule).__name__
        raise ResourceExhausted(
            f"parameter {parameter.name!r}: {name} sees a tensor whole, on one shard, of at most {WHOLE_ELEMENTS_MAX} "
            f"elements, got {parameter.size}; put it into a group with another rule: "
            "stepd.ParamGroup(..., optimizer=stepd.AdamW(...))",
            parameter=parameter.name,
            thing=name,
            field="size",
            expected=WHOLE_ELEMENTS_MAX,
            given=parameter.size,
        )


def _refuse(field: str, given: str, expected: str) -> None:
    raise InvalidArgument(
        f"{field}: servers of this version need {expected}, got {given}", field=field, expected=expected, given=given
    )
