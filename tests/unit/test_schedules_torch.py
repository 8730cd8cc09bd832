"""Schedules against torch's `get_last_lr`, before the first and after each of 200 steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepd import schedules
from stepd.schedules import ReduceOnPlateau, base_for
from tests.reference import schedule_cases
from tests.reference.as_stepd import schedule
from tests.reference.cases import stored_numbers
from tests.reference.schedule_cases import BASE, PLATEAU_CASES, SCHEDULE_CASES, STEPS, TOLERANCE, ScheduleCase, metric

STORED = stored_numbers(schedule_cases.STORED)


def close(given: list[float], expected: np.ndarray) -> None:
    # Where torch arrives at 0 step by step, it is off by what rounding left.
    np.testing.assert_allclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE * 1e-2 * BASE)


@pytest.mark.parametrize("case", SCHEDULE_CASES.values(), ids=str)
def test_rates_are_torchs(case: ScheduleCase) -> None:
    """At every step, with a rate that is set in the middle, and the momentum, too."""
    made, base = schedule(case.schedule), BASE
    assert made is not None
    rates, momenta = [], []
    for step in range(STEPS + 1):
        if step == case.set_at:
            base = base_for(made, step, case.set_to)
        rates.append(made.rate(step, base))
        momenta.append(made.momentum(step))
    close(rates, STORED[f"{case.name}/lr"])
    expected = STORED.get(f"{case.name}/momentum")
    assert (expected is None) == (momenta == [None] * len(momenta))
    if expected is not None:
        close(momenta, expected)


@pytest.mark.parametrize(("name", "arguments"), PLATEAU_CASES.items())
def test_a_plateau_is_torchs(name: str, arguments: dict[str, Any]) -> None:
    """After every metric, one of them no number."""
    plateau = ReduceOnPlateau(**arguments)
    state, rates = plateau.start(), []
    for step in range(STEPS):
        state = plateau.observe(state, metric(step))
        rates.append(plateau.rate_after(state, BASE))
    close(rates, STORED[f"{name}/lr"])
    assert len(set(rates)) > 2


def test_every_torch_schedule_has_a_case() -> None:
    """Of those that are torch's; the others have tests of their own."""
    tested = {case.schedule[0] for case in SCHEDULE_CASES.values()} | {"ReduceOnPlateau"}
    own = {"Constant", "Warmup", "Linear", "Cosine", "InverseSqrt", "WarmupStableDecay", "FromList"}
    exported = {name for name in vars(schedules) if name in schedules.Schedule.registry}
    assert tested | own == exported
