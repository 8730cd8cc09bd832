"""What the worlds are good for: each of these ways to break the core is found, and soon."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Final

import pytest

from tests.simulator.checks import problems_of
from tests.simulator.drawing import draw
from tests.simulator.mutants import MUTANTS
from tests.simulator.world import history

# By the clock of the machine: it is all computing, and others may want the cores as well.
pytestmark = pytest.mark.timeout(300)
# Worlds in which one has to show; as things stand, the first does.
WORLDS: Final = 100


@pytest.mark.parametrize("name", MUTANTS)
def test_the_worlds_find_that(name: str, monkeypatch: pytest.MonkeyPatch, still: None) -> None:
    break_it, theme, first = MUTANTS[name]
    break_it(monkeypatch)
    for seed in range(first, first + WORLDS):
        if problems_of(history(draw(seed, theme))):
            return
        gc.collect()
    pytest.fail(f"{WORLDS} worlds look as if nothing were broken")


def test_the_page_says_how_many_worlds_each_takes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()
    rows = [f"| {name.replace('_', ' ')} | {theme} | {first + 1} |" for name, (_, theme, first) in MUTANTS.items()]
    assert [line for line in page.splitlines() if line in rows] == rows
