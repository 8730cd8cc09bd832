"""Options of our own, and what tests rely on."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from stepd.targets import Target
from stepd_server.ports import HeldPort


def pytest_configure() -> None:
    # A shell without job control has what it starts in the background ignore Ctrl-C, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stepd", "simulated worlds (tests/simulator)")
    group.addoption("--worlds", type=int, default=2000, metavar="N", help="live through the first N (default: 2000)")
    group.addoption("--first-world", type=int, default=0, metavar="SEED", help="begin with this one (default: 0)")
    group.addoption("--world", type=int, metavar="SEED", help="live through this one and print its history")
    group.addoption("--faults", metavar="NUMBERS", help="with --world: only these of its faults, as 0,2; or none")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file is in one process as a whole, but for the worlds: they have nothing in common, and take long."""
    if config.getoption("dist") != "loadfile":
        return None
    scheduling: Any = importlib.import_module("xdist.scheduler").LoadFileScheduling(config, log)
    file_of = scheduling._split_scope
    scheduling._split_scope = lambda test: test if file_of(test).endswith("/test_worlds.py") else file_of(test)
    return scheduling


@pytest.fixture
def vacant() -> Iterator[str]:
    """An address that nobody listens on, and that nobody else gets meanwhile."""
    with HeldPort(Target("127.0.0.1", 0)) as held:
        yield str(held.target)
