"""A case of cases.py in stepd's terms."""

from __future__ import annotations

from typing import Any

from stepd import rules, schedules
from stepd.parameters import ParamGroup
from stepd.policies import AnyClip, Clip, ClipNorm, ClipValue

from .cases import Case, initial


def create_run_arguments(case: Case) -> dict[str, Any]:
    """What `Client.create_run` takes besides the name: params, optimizer, schedule, clip."""
    values = initial(case)
    params: Any = values
    if case.groups:
        params = [
            ParamGroup({name: values[name] for name in group.names}, schedule=schedule(group.schedule), **group.options)
            for group in case.groups
        ]
    optimizer = getattr(rules, case.rule)(**case.options)
    return {"params": params, "optimizer": optimizer, "schedule": schedule(case.schedule), "clip": clip(case)}


def schedule(named: tuple[str, dict[str, Any]] | None) -> schedules.Schedule | None:
    """A schedule by name and arguments; one within another is a name and arguments, too."""
    if named is None:
        return None
    name, arguments = named
    if "schedules" in arguments:
        arguments = arguments | {"schedules": [schedule(one) for one in arguments["schedules"]]}
    made: schedules.Schedule = getattr(schedules, name)(**arguments)
    return made


def clip(case: Case) -> AnyClip | None:
    norm = {name: case.clip[name] for name in ("max_norm", "norm_type") if name in case.clip}
    by_norm = ClipNorm(**norm) if norm else None
    by_value = ClipValue(case.clip["max_value"]) if "max_value" in case.clip else None
    return Clip(by_norm, by_value).simplest() if case.clip else None
