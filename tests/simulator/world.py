"""A world: one run with its servers and workers, from the creation of the run to the last look at it."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from stepd.creating import create
from stepd.errors import NotFound, StepdError
from stepd.parameters import define_run
from stepd.policies import AnySync
from stepd.v1 import coordinator_pb2, run_pb2
from stepd_server.shard.journal import Field
from tests.simulator import seams
from tests.simulator.calls import Call
from tests.simulator.changes import WorldSession, added_masters, set_policy
from tests.simulator.course import Course
from tests.simulator.hosts import RUN, CoordinatorHost, Host, ShardHost
from tests.simulator.loop import NOBODY, Deadlock, Killed, Process, VirtualLoop
from tests.simulator.network import Network
from tests.simulator.readers import Read, ReaderHost, read, streams_of
from tests.simulator.scenario import Scenario
from tests.simulator.weather import Weather
from tests.simulator.workers import Answer, Arrays, WorkerHost

# Virtual seconds that anything may take once nothing goes wrong any more; and in which everything has gone wrong.
PATIENCE_S: Final = 60.0
ROUGH_S: Final = 40.0
_LOOK_S: Final = 0.25
# What a shard writes down when it comes to a step, and leaves it.
_OF_STEPS: Final = frozenset({Field.SEALED, Field.INTENT, Field.ROUND, Field.STEP})
_MEMORY: Final = Path("/dev/shm")


class World:
    """Attributes:
    course: what was recorded.
    pushes, stagings: calls with contributions and with states of the optimizer.
    reads, averaged, answers: what workers and others were given.
    final: the parameters at the end, and their step.
    problems: what must not be.
    events: the transcript.
    lost: why the run cannot go on.
    over: what still ends now means nothing.
    deleted: the run is about to be deleted, or has been.
    """

    def __init__(self, scenario: Scenario, folder: Path, loop: VirtualLoop) -> None:
        self.scenario = scenario
        self.folder = folder
        self.loop = loop
        self.wall_offset = 0.0
        self.weather = Weather(loop, scenario, self)
        self.network = Network(loop, self.weather, self._watch)
        self.stores = seams.Stores(self._die, self._check_steps)
        self.pushes: list[Call] = []
        self.stagings: list[Call] = []
        self.course = Course(self.problem, self.note)
        self.reads: list[Read] = []
        self.answers: list[Answer] = []
        self.averaged: list[Read] = []
        self.final: tuple[Mapping[str, bytes], int] = ({}, 0)
        self.problems: list[str] = []
        self.events: list[tuple[float, str, tuple[object, ...]]] = []
        self.lost = ""
        self.over = False
        self.deleted = False
        self.owner = Process(loop, "owner")
        self.session: WorldSession
        self.spec: run_pb2.RunSpec
        self.layout: run_pb2.Layout
        self.masters: list[Any] = []
        self.coordinator = CoordinatorHost(self, scenario.shards)
        self.shards = [ShardHost(self, index) for index in range(scenario.shards)]
        self.reader = ReaderHost(self)
        self.workers = [WorkerHost(self, index) for index in range(scenario.workers)]

    # --- The transcript -------------------------------------------------------------------------------------------

    def note(self, kind: str, *about: object) -> None:
        self.events.append((self.loop.time(), kind, about))

    def problem(self, text: str) -> None:
        if not self.over:
            self.note("PROBLEM", text)
            self.problems.append(text)

    def transcript(self) -> str:
        return "\n".join(f"{at:9.4f} {kind:8} {' '.join(map(str, about))}" for at, kind, about in self.events)

    def _watch(self, call: Call) -> None:
        method = call.path.rpartition("/")[2]
        if call.status is None:
            self.note("calls", call.channel.process.name, method, call.channel.host, call.number)
            if method in ("Push", "PushAndPull"):
                self.pushes.append(call)
            elif method == "StageState":
                self.stagings.append(call)
            return
        code = call.status.code.name
        self.note("ended", method, call.number, code, call.status.details)
        if method == "AddGroup" and "stands twice" in call.status.details:
            return  # the owner died before it was told that the group is there
        if code in ("INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "INVALID_ARGUMENT", "DATA_LOSS"):
            self.problem(f"{method} of {call.channel.process.name} was answered {code}: {call.status.details}")

    @property
    def averages(self) -> bool:
        return self.scenario.average is not None

    # --- What weather does ----------------------------------------------------------------------------------------

    @property
    def hosts(self) -> dict[str, Host | WorkerHost]:
        servers: list[Host] = [self.coordinator, *self.shards]
        everybody: list[Host | WorkerHost] = [*servers, *self.workers]
        return {host.name: host for host in everybody}

    def part(self, one: str, other: str, rng: random.Random) -> None:
        """Break every connection between two hosts."""
        lose = rng.random() < 0.5
        for call in list(self.network.calls.values()):
            if {call.channel.process.name, call.channel.host} == {one, other}:
                call.cut(lose_request=lose)

    def kill(self, name: str, returns_in: float) -> None:
        host = self.hosts[name]
        if host.here:
            host.process.kill()
            self._after_death(host, returns_in)

    def die_soon(self, name: str, stores: tuple[str, int], returns_in: float) -> None:
        host = self.hosts[name]
        assert isinstance(host, Host)
        if host.here:
            host.returns_in = returns_in
            self.stores.die[host.process] = stores

    def _die(self, process: Process, where: str) -> None:
        """In the middle of a function of its own."""
        host = self.hosts[process.name]
        assert isinstance(host, Host)
        self.note("dies", process.name, where)
        host.leave_memory()
        process.kill()
        self._after_death(host, host.returns_in)
        raise Killed

    def _after_death(self, host: Host | WorkerHost, returns_in: float) -> None:
        if returns_in < 0:
            assert isinstance(host, WorkerHost)
            host.gone = True
        else:
            self.weather.lasts(returns_in)
            self.loop.call_later(returns_in, host.start, context=NOBODY)

    def stop(self, name: str, seconds: float) -> None:
        host = self.hosts[name]
        if host.here and not host.process.stopped:
            host.process.stop()
            self.loop.call_later(seconds, host.process.go_on)

    def change_policy(self, policy: AnySync) -> None:
        """Have the owner do so, whatever is under way."""

        async def change() -> None:
            try:
                await set_policy(self.session, policy)
            except NotFound:
                return  # not yet, or not any more
            except StepdError as error:
                if not self.is_over(error):
                    self.problem(f"the owner cannot change the policy: {error!r}")
            self.note("changes", "owner", policy)

        self.owner.start(change())

    # --- What is looked at on the way -----------------------------------------------------------------------------

    def coordinator_reads(self, folder: Path) -> None:
        self.course.read(folder)

    def _check_steps(self, changed: Field) -> None:
        if changed not in _OF_STEPS:
            return
        steps = [shard.arena.step for shard in self.shards if shard.arena is not None]
        if steps and max(steps) - min(steps) > 1:
            self.problem(f"shards are at steps {steps}")
        if steps and max(steps) > (self.course.last.step if self.course.last else 0):
            self.problem(f"shards are at steps {steps}, more than was decided")

    def may_stop(self, host: WorkerHost) -> bool:
        """Whether a worker that has seen the last step may leave; the last ends what others wait for in vain."""
        host.trained = True
        if not self.scenario.lingers or self.deleted:  # that is the end of everybody's waiting, too
            return True
        if not all(worker.trained or worker.gone for worker in self.workers):
            return False
        for worker in self.workers:
            if worker is not host and worker.here:
                worker.process.kill()
                worker.gone = True
        return True

    def delete(self) -> None:
        """Somebody is about to delete the run."""
        self.deleted = self.course.deleted = True

    def is_over(self, error: StepdError) -> bool:
        """Whether nobody can go on, for a reason that there is."""
        if error.reason == "RUN_LOST":
            self.lost = self.lost or str(error)
        # Another run of that name may be on its way.
        gone = self.deleted and error.reason in ("RUN_NOT_FOUND", "RUN_NOT_STARTED")
        return error.reason == "RUN_LOST" or gone

    # --- What is trained ------------------------------------------------------------------------------------------

    def gradient(self, worker: int, step: int, number: int, known: Collection[str]) -> Arrays:
        """Any float32 where sums go by rank, and multiples of 1/64 where they go by arrival: these add up exactly.

        Where what goes wrong is to change nothing, a function of worker and step; elsewhere no two are the same.
        """
        scenario = self.scenario
        of = (scenario.seed, worker, step) if scenario.repeatable else (scenario.seed, worker, step, number)
        rng = np.random.default_rng(of)
        arrays: Arrays = {}
        for index, shape in enumerate(scenario.shapes):
            if scenario.by_rank:
                array = rng.standard_normal(shape).astype(np.float32)
            else:
                array = (rng.integers(-256, 256, shape) / 64).astype(np.float32)
            if rng.random() >= scenario.partial or index == 0:
                arrays[f"p{index}"] = np.asarray(array, np.float32)
        for name, value in added_masters().items():
            # Of a group that is added for a step everybody knows from the next on, whatever goes wrong.
            if name in known and any(change.kind == "group" and step > change.step for change in scenario.changes):
                arrays[name] = np.asarray(rng.integers(-256, 256, value.shape) / 64, np.float32)
        if self._is_poisoned(worker, step):
            arrays["p0"].reshape(-1)[-1] = np.nan
        return arrays

    def _is_poisoned(self, worker: int, step: int) -> bool:
        if (worker, step) not in self.scenario.poison:
            return False
        return not any(
            bad.member.rank == worker and decision.step_before >= step
            for decision in self.course.decisions
            for bad in decision.nonfinite
        )

    # --- Its course -----------------------------------------------------------------------------------------------

    async def live(self) -> None:
        self.coordinator.start()
        for shard in self.shards:
            shard.start()
        owner = self.owner
        self.network.add_caller(owner)
        session = self.session = WorldSession(self.network, owner)
        self.weather.messages = 0 if self.scenario.early else None
        await owner.start(self._create(session))
        self.weather.messages = self.weather.messages or 0
        for worker, late in zip(self.workers, (*self.scenario.late, *(0.0,) * len(self.workers)), strict=False):
            worker.process = Process(self.loop, worker.name)
            self.loop.call_later(late, worker.start)
        if self.scenario.reader:
            self.reader.process = Process(self.loop, "reader")
            self.reader.start()
        await self._until_done()
        if not self.lost and not self.problems:
            await self._until_calm()
            try:
                await asyncio.wait_for(owner.start(self._look(session)), PATIENCE_S)
            except (StepdError, TimeoutError) as error:
                if not (isinstance(error, StepdError) and self.is_over(error)):
                    self.problem(f"the run cannot be read in the end: {error!r}")

    async def _until_done(self) -> None:
        began = self.loop.time()
        while not all(worker.done or worker.gone for worker in self.workers):
            await asyncio.sleep(_LOOK_S)
            now = self.loop.time()
            if now - began > ROUGH_S:
                self.weather.give_up()
            if now - max(began, self.weather.calm_at) > PATIENCE_S and (self.weather.calm or now - began > 4 * ROUGH_S):
                for worker in self.workers:
                    if not worker.done and not worker.gone:
                        self.problem(f"{worker.name} hangs in {worker.call} since {worker.waits_since}")
                return

    async def _until_calm(self) -> None:
        """Nobody may be left whose messages faults would come with."""
        self.loop.call_later(ROUGH_S, self.weather.give_up)
        while not self.weather.calm:  # noqa: ASYNC110 (time makes it calm)
            await asyncio.sleep(_LOOK_S)

    async def _create(self, session: WorldSession) -> None:
        scenario = self.scenario
        rng = np.random.default_rng((scenario.seed, 7))
        params = {
            f"p{i}": np.asarray(rng.standard_normal(shape), np.float32) for i, shape in enumerate(scenario.shapes)
        }
        spec, self.masters = define_run(
            RUN,
            params,
            optimizer=scenario.rule,
            schedule=scenario.schedule,
            clip=scenario.clip,
            sync=scenario.sync,
            average=scenario.average,
            on_nonfinite=scenario.on_nonfinite,
        )
        self.spec, self.layout = await create(session, spec, self.masters)

    async def _look(self, session: WorldSession) -> None:
        if self.deleted:
            await self._look_after_deletion(session)
            return
        found = await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=RUN))
        streams = streams_of(session, found)
        after = self.course.last.id.round if self.course.last else None
        self.final = await read("owner", streams, self.reads, after=after)
        if self.scenario.average:
            await read("owner", streams, self.averaged, averaged=True)
        await self._settled()

    async def _look_after_deletion(self, session: WorldSession) -> None:
        """Nothing of it is left, and its name is free."""
        await create(session, self.spec, self.masters)
        found = await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=RUN))
        if found.run.step:
            self.problem(f"a run that was created after another was deleted is at step {found.run.step}")
        params, _ = await read("owner", streams_of(session, found), [])
        if list(params.values()) != [np.asarray(master).tobytes() for master in self.masters]:
            self.problem("a run that was created after another was deleted has other parameters than it was given")
        left: list[str] = []
        for _ in range(100):
            left = [shard.name for shard in self.shards if len(shard.runs) > 1]
            if not left:
                return
            await asyncio.sleep(_LOOK_S)
        self.problem(f"a deleted run is still held by {left}")

    async def _settled(self) -> None:
        """All shards have carried out the last decision."""
        last = self.course.last
        stand: list[tuple[int, int]] = []
        for _ in range(100):
            last = self.course.last  # what was under way when everybody left may still be counted
            want = (last.id.round + 1, last.step) if last else (0, 0)
            stand = [(shard.arena.journal[Field.ROUND], shard.arena.journal[Field.STEP]) for shard in self.shards]
            if all(each == want for each in stand):
                return
            await asyncio.sleep(_LOOK_S)
        self.problem(f"shards are at (round, step) {stand} in the end, and the last decision is {last}")


def history(scenario: Scenario) -> World:
    """Live through a scenario."""
    folder = Path(tempfile.mkdtemp(prefix="stepd-world-", dir=_MEMORY if _MEMORY.is_dir() else None))
    loop = VirtualLoop()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    world = World(scenario, folder, loop)
    try:
        with seams.in_place(loop, scenario.seed, world.stores):
            try:
                with world.course.watched():
                    loop.run_until_complete(world.live())
            except Deadlock as error:
                world.problem(f"the world stands still: {error}")
            finally:
                world.over = True
                loop.end()
                for worker in world.workers:
                    worker.let_go()
        world.problems += [f"nobody looked at: {problem}" for problem in loop.problems]
        world.problems += world.network.problems
    finally:
        logging.disable(before)
        shutil.rmtree(folder, ignore_errors=True)
    return world
