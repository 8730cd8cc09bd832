"""Worlds by their seeds: whatever goes wrong, what must hold of every history holds.

pytest tests/simulator --worlds 5000 -n 2     live through the first 5000
pytest tests/simulator --world 17             live through one, and print its history
pytest tests/simulator --world 17 --faults 2  the same with but one of the things that go wrong in it
"""

from __future__ import annotations

import gc
from typing import Final

import pytest

from tests.simulator.checks import problems_of
from tests.simulator.drawing import draw
from tests.simulator.scenario import Scenario
from tests.simulator.shrinking import shrunk
from tests.simulator.world import history

# By the clock of the machine: it is all computing, and others may want the cores as well.
pytestmark = pytest.mark.timeout(300)
# Tests that share the worlds, so that processes can share them; no test with too many for its time.
_TESTS: Final = 20
_WORLDS_MAX: Final = 50
# Of a transcript, for a report.
_CHARS: Final = 6000


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    if "worlds" in metafunc.fixturenames:
        first, count = option("--first-world"), option("--worlds") if option("--world") is None else 0
        tests = max(_TESTS, -(-count // _WORLDS_MAX))
        shares = [range(first + i, first + count, tests) for i in range(min(tests, count))]
        metafunc.parametrize("worlds", shares, ids=[f"{share.start}-{share[-1]}" for share in shares])


def test_whatever_goes_wrong_the_promises_hold(worlds: range, still: None) -> None:
    for seed in worlds:
        scenario = draw(seed)
        if problems_of(history(scenario)):
            pytest.fail(_report(scenario))
        gc.collect()


def _report(scenario: Scenario) -> str:
    """What is wrong, with as few faults as it takes."""
    small, kept = shrunk(scenario)
    world = history(small)
    faults = ",".join(map(str, kept)) or "none"
    return "\n".join(
        [
            f"pytest tests/simulator --world {scenario.seed} --faults {faults}   # replays it",
            *problems_of(world),
            small.describe(),
            world.transcript()[-_CHARS:],
        ]
    )


@pytest.mark.parametrize("seed", [1, 17, 60])
def test_a_seed_gives_the_same_history_again(seed: int, still: None) -> None:
    scenario = draw(seed)
    assert history(scenario).transcript() == history(scenario).transcript()


def test_one_world(pytestconfig: pytest.Config, still: None) -> None:
    seed, faults = pytestconfig.getoption("--world"), pytestconfig.getoption("--faults")
    if seed is None:
        pytest.skip("no world was asked for: --world SEED")
    scenario = draw(seed)
    if faults is not None:
        scenario = scenario.only([int(number) for number in faults.split(",")] if faults != "none" else [])
    world = history(scenario)
    pytest.fail("\n".join([*problems_of(world), scenario.describe(), world.transcript()]))
