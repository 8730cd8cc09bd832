"""What the owner of a run changes, and the session that this goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, Final

import numpy as np

from stepd import specs
from stepd.adding import add_group
from stepd.errors import OverlappingGroups
from stepd.limits import AT_ONCE_BYTES_MAX
from stepd.parameters import ParamGroup, define_group
from stepd.policies import AnySync
from stepd.retry import Patience
from stepd.run import Run
from stepd.session import Session
from stepd.state import load_state_dict, read_state_dict
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2, coordinator_pb2_grpc
from tests.simulator.hosts import RUN
from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import Channel, Network
from tests.simulator.scenario import Change

# A worker in these worlds has little patience, but more than any fault lasts.
RETRY_FOR_S: Final = 30.0
TIMEOUT_S: Final = 10.0
# What the owner sets.
_RATE: Final = 0.03
_DECAY: Final = 0.25
_KEPT: Final = 0.125
# Parameters of the group that is added.
_ADDED: Final[dict[str, tuple[int, ...]]] = {"added": (13,), "more": (3, 2)}


class Here:
    """The session's loop, without a thread of its own."""

    closed = False

    def __init__(self, loop: VirtualLoop, process: Process) -> None:
        self._loop = loop
        self._process = process

    def post(self, action: Callable[[], object]) -> None:
        if not self._loop.is_closed() and not self._process.dead:
            self._process.call(self._loop.call_soon, action)

    def close(self) -> None: ...


class WorldSession(Session):
    """A session over the world's network."""

    def __init__(self, network: Network, process: Process, *, at_once: bool = False) -> None:
        self.at_once_bytes = AT_ONCE_BYTES_MAX if at_once else 0
        self.target = "coordinator:7000"
        self.transport = "grpc"
        self.timeout = TIMEOUT_S
        self.retry_for = RETRY_FOR_S
        self.loop: Any = Here(network.loop, process)
        self._network = network
        self._process = process
        self._shards = {}
        self._channels = []
        self.kept: list[Coroutine[Any, Any, Any]] = []
        self.coordinator = coordinator_pb2_grpc.CoordinatorStub(self._open(self.target))

    def run(self, coroutine: Coroutine[Any, Any, Any], meanwhile: Any = None) -> Any:
        """For functions of the library that wait in the user's thread: what they wait for is kept, to be awaited."""
        self.kept.append(coroutine)

    def patience(self, what: str, target: str | None = None) -> Patience:
        return Patience(what, target or self.target, self.retry_for, self._network.loop.time)

    def _open(self, target: str) -> Any:
        return Channel(self._network, self._process, target)


async def make(change: Change, streams: RunStreams, policy: AnySync | None) -> None:
    """Change the run. Once more, by a worker that died before it was answered, it comes to the same."""
    match change.kind:
        case "rate":
            await _set_rate(streams)
        case "group":
            await _add_group(streams)
        case "state":
            await _load_state(streams)
        case "policy":
            assert policy is not None
            await set_policy(streams.session, policy)


async def _set_rate(streams: RunStreams) -> None:
    session: Any = streams.session
    found = await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=RUN))
    Run(session, found.run.spec, found.layout).set_lr(_RATE)
    await session.kept.pop()


async def set_policy(session: Any, policy: AnySync) -> None:
    found = await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=RUN))
    Run(session, found.run.spec, found.layout).update(sync=policy)
    await session.kept.pop()


async def _add_group(streams: RunStreams) -> None:
    group = ParamGroup(added_masters(), lr=_RATE)
    spec = specs.run_from_proto((await streams.state()).spec)
    with contextlib.suppress(OverlappingGroups):  # added by the same worker, before it died
        await add_group(streams, *define_group(group, spec))


@cache
def added_masters() -> dict[str, np.ndarray[Any, Any]]:
    """The values of a group that is added."""
    return {
        name: np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape) for name, shape in _ADDED.items()
    }


async def _load_state(streams: RunStreams) -> None:
    """One with other buffers and another decay, of the same steps."""
    state: Any = await read_state_dict(streams)
    for kept in state["state"].values():
        for name, value in kept.items():
            if name != "step" and value is not None:
                kept[name] = np.full_like(value, _KEPT)
    for group in state["param_groups"]:
        group["weight_decay"] = _DECAY
    await load_state_dict(streams, state)
