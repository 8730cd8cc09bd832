"""Options of our own."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stepd", "simulated worlds (tests/simulator)")
    group.addoption("--worlds", type=int, default=300, metavar="N", help="live through the first N (default: 300)")
    group.addoption("--first-world", type=int, default=0, metavar="SEED", help="begin with this one (default: 0)")
    group.addoption("--world", type=int, metavar="SEED", help="live through this one and print its history")
    group.addoption("--faults", metavar="NUMBERS", help="with --world: only these of its faults, as 0,2; or none")
