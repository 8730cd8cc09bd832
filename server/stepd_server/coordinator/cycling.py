"""Schedules that cycle the momentum: whether a rule can follow, and what it must keep for that. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stepd.definitions import GroupSpec, RunSpec
from stepd.errors import InvalidArgument
from stepd.rules import Rule
from stepd.schedules import Chained, Cyclic, OneCycle, Schedule, Sequential

__all__ = ["check_cycled", "cycled", "cycled_group"]


def cycled(spec: RunSpec) -> RunSpec:
    """The spec with the momenta that its schedules begin with, as torch's schedulers put them into the optimizer.

    A rule that was given no momentum has the buffers for it then, whose number is settled when a run is created.
    """
    return replace(spec, groups=tuple(cycled_group(group, spec.schedule) for group in spec.groups))


def cycled_group(group: GroupSpec, schedule: Schedule | None) -> GroupSpec:
    """The same of one group.

    Args:
        group: to be.
        schedule: of its run, which it follows unless it has one of its own.
    """
    own = group.schedule or schedule
    momentum = own.momentum(0) if own else None
    return group if momentum is None else replace(group, optimizer=group.optimizer.cycled(momentum))


def check_cycled(rule: Rule, schedule: Schedule) -> None:
    """Raise InvalidArgument if the rule cannot take a momentum of the schedule, or lacks the buffers for it."""
    kept = {buffer.name for buffer in rule.buffers()}
    for momentum in momenta(schedule):
        wanted = {buffer.name for buffer in rule.cycled(momentum).buffers()}
        if not wanted <= kept:
            name = type(rule).__name__
            raise InvalidArgument(
                f"schedule: {type(schedule).__name__} cycles the momentum, and {name} was given none and keeps no "
                "buffers for it: create the run with a momentum, or give the schedule cycle_momentum=False",
                field="schedule",
                expected="a rule with momentum",
                given=repr(rule),
            )


def momenta(schedule: Schedule) -> Iterator[float]:
    """The ends between which a schedule cycles the momentum; none if it does not."""
    if isinstance(schedule, OneCycle | Cyclic) and schedule.cycle_momentum:
        yield schedule.base_momentum
        yield schedule.max_momentum
    elif isinstance(schedule, Sequential | Chained):
        for part in schedule.schedules:
            yield from momenta(part)
