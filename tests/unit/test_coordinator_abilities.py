"""What the fleet cannot carry out is refused when a run is created, with what it can."""

from __future__ import annotations

import numpy as np
import pytest

from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.errors import InvalidArgument
from stepd.rules import LAMB, LARS, SGD, Adafactor, AdamW, Muon, Rule
from stepd.schedules import OneCycle, ReduceOnPlateau, Schedule
from stepd_server.coordinator.abilities import check_trainable


def spec(rule: Rule, schedule: Schedule | None = None) -> RunSpec:
    parameter = ParameterSpec("w", (4, 4), np.dtype(np.float32))
    return RunSpec("run", (parameter,), (GroupSpec(rule),), schedule)


@pytest.mark.parametrize("rule", [LARS(lr=0.1), LAMB(), Muon(), Adafactor()], ids=lambda rule: type(rule).__name__)
def test_rules_that_see_more_than_an_element_are_refused(rule: Rule) -> None:
    """A raw client could name them; updating blocks by them would give wrong numbers in silence."""
    with pytest.raises(InvalidArgument, match=f"each element by itself, got {type(rule).__name__}"):
        check_trainable(spec(rule))


@pytest.mark.parametrize("schedule", [OneCycle(0.1, 100), ReduceOnPlateau()], ids=lambda s: type(s).__name__)
def test_schedules_that_need_more_than_the_step_are_refused(schedule: Schedule) -> None:
    """Momentum that is cycled, and metrics."""
    with pytest.raises(InvalidArgument, match=f"of the step alone .* got {type(schedule).__name__}"):
        check_trainable(spec(AdamW(), schedule))


def test_the_rest_is_taken() -> None:
    """Elementwise rules and schedules of the step."""
    check_trainable(spec(SGD(lr=0.1)))
