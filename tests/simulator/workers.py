"""Workers of a world: what a training loop does with the library, from its first connection to its leaving.

`stepd.Worker` itself is for threads and waits; what it calls is called here, in its order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from google.protobuf.duration_pb2 import Duration

from stepd.contribution import Contribution
from stepd.errors import Aborted, NonFiniteGradient, StepdError
from stepd.parameters import ParameterTable, check_gradients
from stepd.reading import Reading
from stepd.results import Receipt
from stepd.retry import Patience
from stepd.session import Session
from stepd.specs import run_from_proto
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2, coordinator_pb2_grpc, run_pb2
from stepd.worker import join
from tests.simulator.hosts import RUN
from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import Channel, Network
from tests.simulator.scenario import Scenario

Arrays = dict[str, np.ndarray[Any, Any]]

# A worker in these worlds has little patience, but more than any fault lasts.
RETRY_FOR_S: Final = 30.0
TIMEOUT_S: Final = 10.0
_AGAIN_S: Final = 0.2


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

    def __init__(self, network: Network, process: Process) -> None:
        self.target = "coordinator:7000"
        self.transport = "grpc"
        self.timeout = TIMEOUT_S
        self.retry_for = RETRY_FOR_S
        self.loop: Any = Here(network.loop, process)
        self._network = network
        self._process = process
        self._shards = {}
        self._channels = []
        self.coordinator = coordinator_pb2_grpc.CoordinatorStub(self._open(self.target))

    def patience(self, what: str, target: str | None = None) -> Patience:
        return Patience(what, target or self.target, self.retry_for, self._network.loop.time)

    def _open(self, target: str) -> Any:
        return Channel(self._network, self._process, target)


class Streams(RunStreams):
    """Attributes:
    step: of the parameters that were read last.
    """

    step = 0

    async def agree(self, *arguments: Any, **keywords: Any) -> Any:
        return self._took(await super().agree(*arguments, **keywords))

    async def pull_now(self, *arguments: Any, **keywords: Any) -> Any:
        return self._took(await super().pull_now(*arguments, **keywords))

    def _took(self, headers: Any) -> Any:
        self.step = next((header.step for header in headers.values()), self.step)
        return headers


@dataclass(frozen=True)
class Read:
    """Parameters that a worker has read.

    Attributes:
        who: the worker.
        step: that it was told with them.
    """

    who: str
    step: int
    params: Mapping[str, bytes]


@dataclass(frozen=True)
class Answer:
    """What became of a contribution, as its worker was told.

    Attributes:
        member: (name, incarnation).
        decided: it was told together with the step's result.
    """

    member: tuple[str, int]
    round: int
    status: str
    decided: bool


class World(Protocol):
    """What workers need of the world."""

    loop: VirtualLoop
    network: Network
    scenario: Scenario
    reads: list[Read]
    answers: list[Answer]

    def note(self, kind: str, *about: object) -> None: ...
    def problem(self, text: str) -> None: ...
    def gradient(self, worker: int, step: int, number: int) -> Arrays: ...
    def is_lost(self, error: StepdError) -> bool: ...


class WorkerHost:
    """Where one worker runs, time after time.

    Attributes:
        done: it has nothing left to do.
        gone: it has died for good.
        waits_since: when its present call began; None: it is in none.
    """

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.name = f"worker-{index}"
        self.done = False
        self.gone = False
        self.call = ""
        self.waits_since: float | None = None
        self._rng = random.Random(f"{self.name} {world.scenario.seed}")
        self._number = 0
        self._joins = 0
        self.process: Process

    @property
    def here(self) -> bool:
        return not self.process.dead and not self.done

    def start(self) -> None:
        self.waits_since = None
        self.world.note("start", self.name)
        self.process = Process(self.world.loop, self.name)
        self.world.network.add_caller(self.process)
        self.process.start(self._live())

    async def _live(self) -> None:
        try:
            await self._work()
        except Exception as error:  # noqa: BLE001 (told)
            if not (isinstance(error, StepdError) and self.world.is_lost(error)):
                self.world.problem(f"{self.name} ended with {error!r}")
            self.world.note("ends", self.name, error)
        self.waits_since = None
        self.done = True

    async def _answered(self, call: str, work: Coroutine[Any, Any, Any]) -> Any:
        """Everything that a user would wait for: there is an answer or an error some time."""
        self.call, self.waits_since = call, self.world.loop.time()
        try:
            return await work
        finally:
            self.waits_since = None

    # --- A training loop ------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        session = WorldSession(self.world.network, self.process)
        request = coordinator_pb2.GetRunRequest(run=RUN)
        found = await self._answered("run", session.ask("GetRun", request))
        table = ParameterTable(run_from_proto(found.run.spec).parameters)
        streams = Streams(session, found.run.spec, found.layout, table)
        while not await self._member(streams, found.run.spec):  # noqa: ASYNC110 (each time it is tried anew)
            await asyncio.sleep(_AGAIN_S)

    async def _member(self, streams: Streams, spec: run_pb2.RunSpec) -> bool:
        """One membership; whether there is nothing left to do after it."""
        lease = Duration()
        lease.FromNanoseconds(round(self.world.scenario.lease * 1e9))
        self._joins += 1
        request = coordinator_pb2.JoinRunRequest(
            request_id=f"{self.name}.{self._joins}", run=RUN, name=self.name, lease=lease, rank=self.index
        )
        try:
            worker = await self._answered("join", join(run_from_proto(spec), streams, request))
            self.world.note("joins", self.name, worker._membership.member.incarnation)
            loop = _Loop(self, worker, worker._streams)  # its own: see RunStreams.sharing_with
            await loop.train()
            await self._answered("leave", worker._membership.leave(worker._exchange.acknowledged))
        except StepdError as error:
            self.world.note("is told", self.name, error)
            if error.reason in ("NOT_A_MEMBER", "RUN_FULL", "RANK_TAKEN"):
                return False
            raise
        return True


class _Loop:
    """One membership's steps."""

    def __init__(self, host: WorkerHost, worker: Any, streams: Streams) -> None:
        self._host = host
        self._world = host.world
        self._exchange = worker._exchange
        self._reading: Reading = worker._reading
        self._streams = streams

    async def train(self) -> None:
        scenario, host = self._world.scenario, self._host
        until = min(scenario.target, scenario.leaves.get(host.index, scenario.target))
        await self._try(self._pull())
        while self._streams.step < until:
            work = self._push() if host._rng.random() < scenario.pushes else self._step()
            if not await self._try(work):
                # It is still on its way, perhaps: what comes of it is in the parameters that are there next.
                await self._try(self._pull())
        if until < scenario.target and host._rng.random() < 0.5:
            await self._try(self._push_only())

    async def _try(self, work: Coroutine[Any, Any, None]) -> bool:
        try:
            await self._host._answered(getattr(work, "__name__", ""), work)
        except NonFiniteGradient as error:
            self._world.note("is told", self._host.name, error)
            return False
        except StepdError as error:
            if error.reason == "NOT_A_MEMBER" or self._world.is_lost(error):
                raise
            self._world.note("is told", self._host.name, error)
            self._world.problem(f"{self._host.name} got an error in the end: {error!r}")
            return False
        return True

    def _contribution(self) -> Contribution:
        host = self._host
        number, host._number = host._number, host._number + 1
        grads = self._world.gradient(host.index, self._streams.step, number)
        weight = (0.5, 1.0, 2.0)[(host.index + self._streams.step) % 3]
        weighted = self._world.scenario.sync.reduce == "weighted"
        arrays = check_gradients(self._streams.table, grads)
        return Contribution.of(arrays, weight if weighted else 1.0, self._exchange.version)

    async def _through(self, call: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        while True:
            wanted = self._reading.want()
            try:
                result = await call(wanted)
            except Aborted as error:
                if error.reason != "LAYOUT_CHANGED":
                    raise
            else:
                self._took(wanted.arrays())
                return result

    def _took(self, arrays: Mapping[str, Any]) -> None:
        params = {name: array.tobytes() for name, array in arrays.items()}
        self._world.reads.append(Read(self._host.name, self._streams.step, params))

    async def _pull(self) -> None:
        await self._through(lambda wanted: self._exchange.pull(wanted.picture, wanted.regions))
        self._world.note("pulls", self._host.name, self._streams.step)

    async def _step(self) -> None:
        contribution = self._contribution()
        settled = await self._through(lambda wanted: self._exchange.step(contribution, wanted.picture, wanted.regions))
        receipt = contribution.receipt(settled.decision)
        self._answer(contribution, receipt, decided=settled.decision.id.round == contribution.round)
        self._world.note("steps", self._host.name, self._streams.step, receipt)

    async def _push_only(self) -> None:
        contribution = self._contribution()
        receipt = await self._exchange.push(contribution)
        self._answer(contribution, receipt, decided=False)
        self._world.note("pushes", self._host.name, receipt)

    async def _push(self) -> None:
        await self._push_only()
        await self._pull()

    def _answer(self, contribution: Contribution, receipt: Receipt, *, decided: bool) -> None:
        member = (contribution.sender.worker, contribution.sender.incarnation)
        self._world.answers.append(Answer(member, receipt.round, receipt.status, decided))
