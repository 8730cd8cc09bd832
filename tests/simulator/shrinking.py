"""As few faults as a failure takes."""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulator.checks import problems_of
from tests.simulator.scenario import Scenario
from tests.simulator.world import history


def shrunk(scenario: Scenario) -> tuple[Scenario, Sequence[int]]:
    """The scenario with fewer faults that fails as well, and which faults these are."""
    kept = list(range(len(scenario.faults)))
    for fault in reversed(range(len(scenario.faults))):
        fewer = [number for number in kept if number != fault]
        if problems_of(history(scenario.only(fewer))):
            kept = fewer
    return scenario.only(kept), kept
