"""Fleets that are meant to be broken, and what their servers said when a test fails."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

import stepd
from tests.faults.proxy import Network
from tests.faults.roles import Fleet
from tests.patience import PATIENCE_S

_numbers = itertools.count()
_fleets: list[Fleet] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.path.parent == Path(__file__).parent:
        report.sections += [("servers", fleet.logs()) for fleet in _fleets]
    return report


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="session")
def proxied(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Iterator[Fleet]:
    """Three shards, with proxies before them and before the coordinator."""
    with Fleet(tmp_path_factory.mktemp("proxied"), 3, network) as fleet:
        _fleets.append(fleet)
        yield fleet
        _fleets.remove(fleet)


@pytest.fixture
def fleet(proxied: Fleet) -> Iterator[Fleet]:
    """The proxied fleet, in good health; tests share it, each with a run of its own."""
    proxied.heal()
    yield proxied
    proxied.heal()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Start a fleet for this test alone: so many shards, without proxies."""
    own: list[Fleet] = []

    def start(shards: int, folder: str = "fleet", **options: dict[str, Path]) -> Fleet:
        (tmp_path / folder).mkdir()
        own.append(Fleet(tmp_path / folder, shards, **options))
        _fleets.append(own[-1])
        return own[-1]

    yield start
    for fleet in own:
        fleet.stop()
        _fleets.remove(fleet)


@pytest.fixture
def client(fleet: Fleet) -> Iterator[stepd.Client]:
    with stepd.connect(fleet.target, timeout=5.0, retry_for=PATIENCE_S) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name for a run that no other test has."""
    return f"{re.sub(r'[^A-Za-z0-9_]+', '-', request.node.name).strip('-')[:100]}-{next(_numbers)}"
