"""Worlds by their seeds: whatever goes wrong, what must hold of every history holds.

STEPD_SEEDS=N lives through the first N; STEPD_SEED=n through one, and prints its history.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.simulator.checks import problems_of
from tests.simulator.drawing import draw
from tests.simulator.world import history

WORLDS: Final = int(os.environ.get("STEPD_SEEDS", "200"))
CHUNKS: Final = 20


@pytest.fixture(autouse=True)
def _no_garbage_collector() -> Iterator[None]:
    """It would run finalizers at any moment, which is no part of a history that can be had again."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def live_through(seed: int) -> None:
    scenario = draw(seed)
    world = history(scenario)
    problems = problems_of(world)
    if problems:
        told = "\n".join(problems)
        pytest.fail(f"STEPD_SEED={seed} replays it\n{told}\n{scenario.describe()}\n{world.transcript()[-6000:]}")


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_whatever_goes_wrong_the_promises_hold(chunk: int) -> None:
    for seed in range(chunk, WORLDS, CHUNKS):
        live_through(seed)
        gc.collect()


def test_a_seed_gives_the_same_history_again() -> None:
    for seed in (1, 60, 78):
        assert history(draw(seed)).transcript() == history(draw(seed)).transcript()


@pytest.mark.skipif("STEPD_SEED" not in os.environ, reason="no seed was asked for")
def test_one_world() -> None:
    scenario = draw(int(os.environ["STEPD_SEED"]))
    world = history(scenario)
    pytest.fail("\n".join([*problems_of(world), scenario.describe(), world.transcript()]))
