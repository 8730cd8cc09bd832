"""What a fleet of this version can train. Pure."""

from __future__ import annotations

from stepd.definitions import ParameterSpec, RunSpec
from stepd.errors import ResourceExhausted
from stepd.limits import WHOLE_ELEMENTS_MAX
from stepd.rules import Reach, Rule
from stepd_server.coordinator.cycling import check_cycled

__all__ = ["check_trainable"]


def check_trainable(spec: RunSpec) -> None:
    """Raise InvalidArgument for rules that cannot follow their schedule, and for parameters that their rule cannot
    update; ResourceExhausted for parameters that it must see whole and no shard should."""
    for index, group in enumerate(spec.groups):
        check_cycled(group.optimizer, spec.schedule_of(index))
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
