"""Groups whose rate depends on what workers report: what is remembered of it beside the run. Pure.

Rounds know nothing of it: to them such a group has a constant rate, which the owner seems to change now and then.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import replace

from stepd.definitions import RunSpec
from stepd.schedules import Constant, ReduceOnPlateau
from stepd.schedules.plateau import PlateauState

__all__ = ["Plateaus"]


class Plateaus:
    """The state of every group on ReduceOnPlateau.

    Attributes:
        spec: of the run, as its owner gave it.
        in_effect: the same with the present rates of these groups, constant.
    """

    def __init__(self, spec: RunSpec, recorded: bytes | None = None) -> None:
        """Args:
        spec: of the run.
        recorded: what an earlier coordinator knew of it, from `to_bytes`.
        """
        self.spec = spec
        states = json.loads(recorded) if recorded else {}
        self._states = {
            group: PlateauState(*states[str(group)]) if str(group) in states else schedule.start()
            for group, schedule in _schedules(spec).items()
        }
        self.in_effect = self._with_rates()

    def observe(self, metrics: Iterable[float]) -> bool:
        """Take metrics in, oldest first; whether there is anything new to record."""
        before = dict(self._states)
        for metric in metrics:
            for group, schedule in _schedules(self.spec).items():
                self._states[group] = schedule.observe(self._states[group], metric)
        self.in_effect = self._with_rates()
        return before != self._states

    def change(self, spec: RunSpec, rated: Container[int]) -> None:
        """The owner has changed the run.

        Args:
            spec: as it is now.
            rated: groups that got a rate: it is what is to be reduced from now on. Another schedule starts anew.
        """
        before, after = _schedules(self.spec), _schedules(spec)
        self._states = {
            group: self._states[group] if before.get(group) == schedule else schedule.start()
            for group, schedule in after.items()
        }
        for group in self._states:
            if group in rated:
                self._states[group] = self._states[group]._replace(reductions=0)
        self.spec = spec
        self.in_effect = self._with_rates()

    def to_bytes(self) -> bytes:
        return json.dumps(self._states).encode()

    def _with_rates(self) -> RunSpec:
        if not self._states:
            return self.spec
        groups = list(self.spec.groups)
        for index, schedule in _schedules(self.spec).items():
            rule = groups[index].optimizer
            rate = schedule.rate_after(self._states[index], rule.lr)
            groups[index] = replace(groups[index], optimizer=replace(rule, lr=rate), schedule=Constant())
        return replace(self.spec, groups=tuple(groups))


def _schedules(spec: RunSpec) -> dict[int, ReduceOnPlateau]:
    each = ((group, spec.schedule_of(group)) for group in range(len(spec.groups)))
    return {group: schedule for group, schedule in each if isinstance(schedule, ReduceOnPlateau)}
