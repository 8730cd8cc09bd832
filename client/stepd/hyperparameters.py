"""Changing a rule's hyperparameters under a state that stays. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stepd.errors import InvalidArgument
from stepd.rules import Rule
from stepd.settings import check_field_names

__all__ = ["with_hyperparameters"]


def with_hyperparameters(thing: str, rule: Rule, values: Mapping[str, Any]) -> Rule:
    """The rule with other values, or InvalidArgument if it would keep other buffers with them.

    Args:
        thing: whose rule it is, for the message.
        rule: as it is.
        values: by field.
    """
    check_field_names(type(rule), values)
    changed = replace(rule, **values)
    has, needs = _kept_by(rule), _kept_by(changed)
    if has != needs:
        raise InvalidArgument(
            f"{thing}: with {_differing(rule, changed)} {type(rule).__name__} keeps {_listed(needs)} for every "
            f"parameter, and the run, which has {_differing(changed, rule)}, keeps {_listed(has)}",
            thing=thing,
            expected=_listed(has),
            given=_listed(needs),
        )
    return changed


def _kept_by(rule: Rule) -> tuple[str, ...]:
    """Names of what a rule keeps for a parameter, in torch's order."""
    return (*(scalar.name for scalar in rule.scalars()), *(buffer.name for buffer in rule.buffers()))


def _differing(one: Rule, other: Rule) -> str:
    """The fields of the other rule that are not the same in this one."""
    fields = vars(other)
    return ", ".join(f"{name}={fields[name]!r}" for name, value in vars(one).items() if value != fields[name])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
