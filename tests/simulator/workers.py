"""Workers of a world: what a training loop does with the library, from its first connection to its leaving.

`stepd.Worker` itself is for threads and waits; what it calls is called here, in its order.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from google.protobuf.duration_pb2 import Duration

from stepd import specs
from stepd.contribution import Contribution
from stepd.errors import Aborted, NonFiniteGradient, NotFound, StepdError
from stepd.membership import Membership
from stepd.parameters import check_gradients
from stepd.reading import Reading
from stepd.results import Receipt
from stepd.run import delete_run
from stepd.v1 import coordinator_pb2, run_pb2
from stepd.worker import join
from tests.simulator.changes import WorldSession, make
from tests.simulator.hosts import RUN
from tests.simulator.loop import Process, VirtualLoop
from tests.simulator.network import Network
from tests.simulator.readers import Read, Streams, streams_of
from tests.simulator.scenario import Change, Scenario

Arrays = dict[str, np.ndarray[Any, Any]]

_AGAIN_S: Final = 0.2


@dataclass(frozen=True)
class Answer:
    """What became of a contribution, as its worker was told.

    Attributes:
        member: (name, incarnation).
        sequence: counts the contributions of the membership.
        decided: it was told when its round was decided, and is the last word.
    """

    member: tuple[str, int]
    round: int
    sequence: int
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
    def gradient(self, worker: int, step: int, number: int, known: Collection[str]) -> Arrays: ...
    def delete(self) -> None: ...
    def may_stop(self, host: WorkerHost) -> bool: ...
    def is_over(self, error: StepdError) -> bool: ...


class WorkerHost:
    """Where one worker runs, time after time.

    Attributes:
        done: it has nothing left to do.
        gone: it has died for good.
        joins: how often it has asked to become a member.
        trained: it has seen the last step.
        changed: what it has changed as the run's owner.
        waits_since: when its present call began; None: it is in none.
    """

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.name = f"worker-{index}"
        self.done = False
        self.gone = False
        self.trained = False
        self.changed: list[Change] = []
        self.call = ""
        self.waits_since: float | None = None
        self._rng = random.Random(f"{self.name} {world.scenario.seed}")
        self._number = 0
        self.joins = 0
        # Each with the incarnation that it began with.
        self._memberships: list[tuple[Membership, int]] = []
        self._finalizers: list[Any] = []
        self.process = Process(world.loop, self.name)
        self.process.dead = True  # until it is started

    @property
    def came_again(self) -> bool:
        """Whether it has become a member more than once, by asking for it or as the library had a lost place back."""
        return self.joins > 1 or any(own.member.incarnation != first for own, first in self._memberships)

    @property
    def incarnations(self) -> list[int]:
        """What its memberships began with."""
        return [first for _, first in self._memberships]

    @property
    def here(self) -> bool:
        return not self.process.dead and not self.done

    def start(self) -> None:
        self.waits_since = None
        self.world.note("start", self.name)
        self.process = Process(self.world.loop, self.name)
        self.world.network.add_caller(self.process)
        self.process.start(self._live())

    def let_go(self) -> None:
        """Nothing of it is to stay after its world: a finalizer of what has died would, and all that it refers to."""
        for finalizer in self._finalizers:
            finalizer.detach()

    async def _live(self) -> None:
        try:
            await self._work()
        except Exception as error:  # noqa: BLE001 (told)
            if not (isinstance(error, StepdError) and self.world.is_over(error)):
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
        session = WorldSession(self.world.network, self.process, at_once=self.world.scenario.at_once)
        request = coordinator_pb2.GetRunRequest(run=RUN)
        found = await self._answered("run", session.ask("GetRun", request))
        streams = streams_of(session, found)
        while not await self._member(streams, found.run.spec):  # noqa: ASYNC110 (each time it is tried anew)
            await asyncio.sleep(_AGAIN_S)

    async def _member(self, streams: Streams, spec: run_pb2.RunSpec) -> bool:
        """One membership; whether there is nothing left to do after it."""
        lease = Duration()
        lease.FromNanoseconds(round(self.world.scenario.lease * 1e9))
        self.joins += 1
        request = coordinator_pb2.JoinRunRequest(
            request_id=f"{self.name}.{self.joins}", run=RUN, name=self.name, lease=lease, rank=self.index
        )
        try:
            worker = await self._answered("join", join(specs.run_from_proto(spec), streams, request))
            self._memberships.append((worker._membership, worker._membership.member.incarnation))
            self._finalizers.append(worker._abandon)
            self.world.note("joins", self.name, worker._membership.member.incarnation)
            loop = _Loop(self, worker, worker._streams)  # its own: see RunStreams.of_worker
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
        while self._streams.step < until or not self._world.may_stop(host):
            await self._change()
            work = self._push() if host._rng.random() < scenario.pushes else self._step()
            if not await self._try(work):
                # It is still on its way, perhaps: what comes of it is in the parameters that are there next.
                await self._try(self._pull())
        if until < scenario.target and host._rng.random() < 0.5:
            await self._try(self._push_only())

    async def _change(self) -> None:
        """The first worker is the run's owner as well."""
        scenario, host = self._world.scenario, self._host
        due = [change for change in scenario.changes if change.step <= self._streams.step]
        for change in due if host.index == 0 else ():
            if change not in host.changed:
                await host._answered(f"change of {change.kind}", make(change, self._streams, scenario.policy))
                host.changed.append(change)
                self._world.note("changes", host.name, change)
        if host.index == 0 and scenario.deleted is not None and self._streams.step >= scenario.deleted:
            self._world.delete()
            await host._answered("delete", delete_run(self._streams.session, RUN))
            raise NotFound("this worker has deleted the run", reason="RUN_NOT_FOUND")

    async def _try(self, work: Coroutine[Any, Any, None]) -> bool:
        try:
            await self._host._answered(getattr(work, "__name__", ""), work)
        except NonFiniteGradient as error:
            self._world.note("is told", self._host.name, error)
            return False
        except StepdError as error:
            if error.reason == "NOT_A_MEMBER" or self._world.is_over(error):
                raise
            self._world.note("is told", self._host.name, error)
            self._world.problem(f"{self._host.name} got an error in the end: {error!r}")
            return False
        return True

    def _contribution(self) -> Contribution:
        host = self._host
        number, host._number = host._number, host._number + 1
        known = {parameter.name for parameter in self._streams.table.specs}
        grads = self._world.gradient(host.index, self._streams.step, number, known)
        weight = (0.5, 1.0, 2.0)[(host.index + self._streams.step) % 3]
        arrays = check_gradients(self._streams.table, grads)
        return Contribution.of(arrays, weight if self._world.scenario.weighted else 1.0, self._exchange.version)

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
        self._answer(receipt, contribution, decided=True)
        self._world.note("steps", self._host.name, self._streams.step, receipt)

    async def _push_only(self) -> None:
        contribution = self._contribution()
        receipt = await self._exchange.push(contribution)
        self._answer(receipt, contribution, decided=contribution.in_turn)
        self._world.note("pushes", self._host.name, receipt)

    async def _push(self) -> None:
        await self._push_only()
        await self._pull()

    def _answer(self, receipt: Receipt, of: Contribution, *, decided: bool) -> None:
        member = (of.sender.worker, of.sender.incarnation)
        self._world.answers.append(Answer(member, receipt.round, of.sequence, receipt.status, decided))
