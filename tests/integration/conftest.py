"""Fleets of real processes, started once for all tests."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import pytest

import stepd
from tests.patience import PATIENCE_S

_numbers = itertools.count()


@pytest.fixture(scope="session")
def fleets() -> Iterator[Callable[[int], stepd.LocalFleet]]:
    """A fleet by its number of shards. Tests share them: each has runs of its own, and kills nothing."""
    started: dict[int, stepd.LocalFleet] = {}

    def fleet(shards: int) -> stepd.LocalFleet:
        if shards not in started:
            started[shards] = stepd.local(shards)
        return started[shards]

    yield fleet
    for each in started.values():
        each.stop()


@pytest.fixture
def connect(fleets: Callable[[int], stepd.LocalFleet]) -> Iterator[Callable[..., stepd.Client]]:
    """A client of the fleet of so many shards; closed at the end of the test."""
    clients: list[stepd.Client] = []

    def connect(shards: int = 3, **options: float) -> stepd.Client:
        clients.append(stepd.connect(fleets(shards).target, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Callable[..., stepd.Client]) -> stepd.Client:
    """A client of the fleet of three shards that loses patience before the test does."""
    return connect(3, timeout=PATIENCE_S / 2, retry_for=PATIENCE_S / 2)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a run that no other test has."""
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', request.node.name).strip('-')[:100]}-{next(_numbers)}"
