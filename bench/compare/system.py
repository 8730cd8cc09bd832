"""What is compared: each system is a module with a server's side and a worker's, which run in processes of their own.

A module has two functions:

    host(start: Start) -> None
        Starts what workers need, says `start.ready(address, pids)` once, waits in `start.wait()`, and ends it.
    join(start: Start, address) -> context manager that gives a Worker
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.compare.workload import Arrays, Files


class Worker(Protocol):
    """One worker's side. `parameters` are the worker's own memory or a view there."""

    parameters: Arrays

    def prepare(self, gradient: Arrays) -> None:
        """Have a gradient where the system wants it, as if it had been computed there. Not timed."""

    def step(self, gradient: Arrays) -> None:
        """Hand a gradient over, and have the new parameters."""


@dataclass(frozen=True)
class Start:
    """What a side is started with.

    Attributes:
        workers: how many there are.
        rank: of this worker; -1 for a host.
        options: of the system.
        files: of the workload.
        ready: tells where workers find the host, and which processes hold the parameters.
        wait: returns when the host is to end.
    """

    workers: int
    rank: int
    options: Mapping[str, Any]
    files: Files
    ready: Callable[[Any, list[int]], None]
    wait: Callable[[], None]


class Module(Protocol):
    """A file of systems/."""

    def host(self, start: Start) -> None: ...

    def join(self, start: Start, address: Any) -> AbstractContextManager[Worker]: ...


@dataclass(frozen=True)
class System:
    """A row of the table.

    Attributes:
        key: for --only.
        name: in the table.
        way: how gradients and parameters go.
        module: of systems/.
        options: of the module.
        needs: modules that must be installed.
        workers_max: so many at most.
        tolerance: how far parameters may be off (workload.deviation); None: it computes none.
        slow: gets a third of the steps.
        server: it has one.
        quick: it takes part with --quick.
        spins: it computes while it waits, and so is stopped while others have their turn.
    """

    key: str
    name: str
    way: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    workers_max: int = 64
    tolerance: float | None = 1e-4
    slow: bool = False
    server: bool = True
    quick: bool = True
    spins: bool = False
