"""All runs of a fleet: created, started, found, deleted, and found again by a coordinator that starts."""

from __future__ import annotations

import asyncio
import logging
import secrets
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable
from itertools import count
from typing import Any, Final

from stepd import specs
from stepd.definitions import RunSpec
from stepd.errors import AlreadyExists, NotFound, ResourceExhausted, StepdError, Unavailable
from stepd.layout import to_proto as layout_to_proto
from stepd.limits import CHANGES_MAX, LOADING_TIMEOUT_S, RUNS_MAX, WAIT_S
from stepd.settings import shown
from stepd.v1 import coordinator_pb2, run_pb2, shard_control_pb2
from stepd_server.coordinator.abilities import check_trainable
from stepd_server.coordinator.cycling import cycled
from stepd_server.coordinator.extending import Extending
from stepd_server.coordinator.fleet import Fleet
from stepd_server.coordinator.picture import Clocks
from stepd_server.coordinator.placing import place
from stepd_server.coordinator.run import Run
from stepd_server.coordinator.store import RunRecord, Store

logger = logging.getLogger(__name__)

# Taking memory for a large run, and giving it back, takes a shard a while.
_PREPARE_S: Final = 120.0
_SEAL_S: Final = 120.0
_DROP_S: Final = 30.0
_HOLD_S: Final = 30.0
# How often it is looked whether shards have done what was decided.
_LOOK_S: Final = 0.005
# Incarnations are numbered on from here by each coordinator in turn: so many joins in one life, and nobody's number is
# given away twice.
_INCARNATIONS_OF_ONE_LIFE: Final = 10**9


class Runs:
    """Runs by name."""

    def __init__(self, fleet: Fleet, store: Store, clocks: Clocks) -> None:
        self._fleet = fleet
        self._store = store
        self._clocks = clocks
        self._runs: dict[str, Run] = {}
        self._extending: Final = Extending(fleet, self._lay_out, clocks.steady)
        self._incarnations = count(store.start() * _INCARNATIONS_OF_ONE_LIFE + 1)
        # Of runs that were started and deleted: the requests that created them, which may come again. One that comes
        # to another coordinator makes a run that nobody loads, and is dropped for that.
        self._ended: deque[str] = deque(maxlen=CHANGES_MAX)
        # Deleted runs, and the shards that have yet to hear of it.
        self._dropped: dict[str, tuple[RunRecord, set[int]]] = {}
        # One change of a name at a time.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._restore()

    def _restore(self) -> None:
        everywhere = {shard.index for shard in self._fleet.shards}
        for record in self._store.dropped():
            self._dropped[record.run_id] = (record, set(everywhere))
        for record in self._store.runs():
            if not record.started:
                # Whoever was loading it gets NOT_FOUND and creates it anew.
                self._bury(record)
                continue
            run = self._runs[record.name] = self._open(record)
            run.restore()
            logger.info("run %r: taken up again at step %d", run.name, run.step)

    def _open(self, record: RunRecord) -> Run:
        return Run(record, self._store.run(record.name), self._fleet, self._incarnations, self._clocks)

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, name: str, run_id: str = "") -> Run:
        """The run of that name; that very run, if an id is given."""
        run = self._runs.get(name)
        if run is None or (run_id and run.record.run_id != run_id):
            raise NotFound(f"no run {shown(name)}", reason="RUN_NOT_FOUND", run=shown(name))
        return run

    def all(self) -> list[Run]:
        """By name."""
        return [self._runs[name] for name in sorted(self._runs)]

    # --- Creating and starting ------------------------------------------------------------------------------------

    async def create(self, request_id: str, message: run_pb2.RunSpec) -> Run:
        """Lay a run out and have every shard take memory for it; undone if one cannot."""
        spec = cycled(specs.run_from_proto(message))
        check_trainable(spec)
        async with self._lock(spec.name):
            existing = self._runs.get(spec.name)
            if existing is not None:
                if request_id and existing.record.request_id == request_id:
                    existing.loading_since = self._clocks.steady()
                    return existing
                raise AlreadyExists(f"run {spec.name!r} exists already", run=spec.name)
            if request_id and request_id in self._ended:
                raise AlreadyExists(f"run {spec.name!r} was created by this request, and deleted since", run=spec.name)
            if len(self._runs) >= RUNS_MAX:
                raise ResourceExhausted(
                    f"a fleet has at most {RUNS_MAX} runs", expected=RUNS_MAX, given=len(self._runs) + 1
                )
            self._fleet.check_complete()
            prepared = shard_control_pb2.PrepareRunRequest(
                run_id=secrets.token_hex(8), spec=specs.run_to_proto(spec), layout=self._lay_out(spec)
            )
            record = RunRecord(prepared, request_id, self._clocks.wall())
            try:
                self._store.create(record)
            except OSError as error:
                raise ResourceExhausted(
                    f"run {spec.name!r}: the coordinator cannot write down what it is to be: {error.strerror}",
                    run=spec.name,
                ) from error
            run = self._runs[spec.name] = self._open(record)
            try:
                answers = await self._fleet.call_all("PrepareRun", prepared, _PREPARE_S)
                run.set_bytes(sum(answer.bytes for answer in answers))
            except (StepdError, OSError, asyncio.CancelledError):
                await asyncio.shield(self._spawn(self._delete(run)))
                raise
            logger.info("run %r: created, %d bytes", run.name, run.record.state_bytes)
            return run

    def _lay_out(self, spec: RunSpec) -> run_pb2.Layout:
        pieces = place(spec, len(self._fleet.shards))
        return layout_to_proto(pieces, self._fleet.targets, specs.dtype_to_proto(spec.master))

    async def start(self, name: str, run_id: str = "") -> Run:
        """Open a run whose parameters every shard has."""
        async with self._lock(name):
            run = self.get(name, run_id)
            if not run.started:
                self._fleet.check_complete()
                try:
                    await self._fleet.call_all("SealRun", shard_control_pb2.SealRunRequest(run=name), _SEAL_S)
                except NotFound:
                    # A shard has started anew meanwhile: what was loaded is gone.
                    await self._delete(run)
                    raise
                run.start()
                logger.info("run %r: started", name)
            return run

    async def add_group(self, request: coordinator_pb2.AddGroupRequest) -> coordinator_pb2.AddGroupResponse:
        async with self._lock(request.run):
            run = self.get(request.run)
            _check_state_in_use(run)
            return await self._extending.add(run, request)

    async def commit_group(self, request: coordinator_pb2.CommitGroupRequest) -> Run:
        async with self._lock(request.run):
            run = self.get(request.run)
            settle = self._extending.abandon if request.abandon else self._extending.commit
            await settle(run, request.request_id)
            return run

    # --- State ----------------------------------------------------------------------------------------------------

    async def load_state(self, request: coordinator_pb2.LoadStateRequest) -> Run:
        """Have every shard use a state that was staged on it; answer when they do."""
        run = self.get(request.run)
        # Not to be cut short by the caller's going away, between the shards' word and the decision.
        await asyncio.shield(self._spawn(self._decide_state(request)))
        deadline = self._clocks.steady() + WAIT_S
        while run.loads_state:
            if self._clocks.steady() >= deadline:
                raise Unavailable(
                    f"run {run.name!r}: the state is loaded, and shards have yet to use it: {run.problem}",
                    reason="RUN_RECOVERING",
                    run=run.name,
                )
            await asyncio.sleep(_LOOK_S)
        return run

    async def _decide_state(self, request: coordinator_pb2.LoadStateRequest) -> None:
        async with self._lock(request.run):
            run = self.get(request.run)
            if not request.state_id or request.state_id in run.record.changes:
                return
            self._fleet.check_complete()
            _check_state_in_use(run)
            # A group that is on its way has been prepared with the hyperparameters of now.
            self._extending.check_free(run)
            held = shard_control_pb2.HoldStateRequest(run=run.name, state_id=request.state_id)
            await self._fleet.call_all("HoldState", held, _HOLD_S)
            run.load_state(request)
            logger.info("run %r: a state of the optimizer is loaded at step %d", run.name, run.step)

    # --- Deleting -------------------------------------------------------------------------------------------------

    async def delete(self, name: str, run_id: str = "") -> None:
        """End a run and free its memory; shards that are away free theirs when they return."""
        self.get(name, run_id)
        # Not to be cut short by the caller's going away.
        await asyncio.shield(self._spawn(self._delete_locked(name, run_id)))

    async def _delete_locked(self, name: str, run_id: str) -> None:
        async with self._lock(name):
            await self._delete(self.get(name, run_id))

    async def _delete(self, run: Run) -> None:
        self._bury(run.record)
        if run.record.started and run.record.request_id:
            self._ended.append(run.record.request_id)
        self._runs.pop(run.name, None)
        self._extending.forget(run)
        await run.close(deleted=True)
        await self._sweep(run.record.run_id, [shard.index for shard in self._fleet.shards if shard.ready])
        logger.info("run %r: deleted", run.name)

    def _bury(self, record: RunRecord) -> None:
        self._store.drop(record)
        self._dropped[record.run_id] = (record, {shard.index for shard in self._fleet.shards})

    async def _sweep(self, run_id: str, shards: Iterable[int]) -> None:
        """Tell shards of a deleted run. Under the lock of its name."""
        record, pending = self._dropped[run_id]
        request = shard_control_pb2.DropRunRequest(run=record.name)
        # With a new run of that name, a shard has let go of the older one.
        told = sorted(pending & set(shards))
        outcomes = await asyncio.gather(
            *(self._fleet.call(shard, "DropRun", request, _DROP_S) for shard in told), return_exceptions=True
        )
        for shard, outcome in zip(told, outcomes, strict=True):
            if not isinstance(outcome, BaseException) or isinstance(outcome, NotFound):
                pending.discard(shard)
            else:
                logger.warning("run %r: shard %d could not drop it: %s", record.name, shard, outcome)
        if not pending:
            self._store.forget(record)
            self._dropped.pop(run_id, None)

    async def _sweep_all(self, shard: int) -> None:
        for run_id, (record, pending) in list(self._dropped.items()):
            async with self._lock(record.name):
                if record.name in self._runs:
                    # A new run of that name: the shard let go of the older one when it prepared this.
                    pending.discard(shard)
                if run_id in self._dropped:
                    await self._sweep(run_id, [shard])

    # --- Shards and time ------------------------------------------------------------------------------------------

    def shard_back(self, shard: int, held: Iterable[coordinator_pb2.HeldRun]) -> None:
        holds = {run.run: run for run in held}
        for run in self.all():
            run.shard_back(shard, holds.get(run.name))
        if self._dropped:
            self._spawn(self._sweep_all(shard))

    def count_repeated(self, shard: int, held: Iterable[coordinator_pb2.HeldRun]) -> None:
        """Take in what a shard says of contributions that came again."""
        for one in held:
            if one.repeated_contributions and (run := self._runs.get(one.run)):
                run.count_repeated(shard, one)

    def shard_away(self, shard: int) -> None:
        for run in self.all():
            run.shard_away(shard)

    def make_up_for(self, seconds: float) -> None:
        """The coordinator stood still for so long."""
        for run in self.all():
            run.make_up_for(seconds)

    def tick(self) -> None:
        """Let time take effect."""
        for run in self.all():
            run.take_up()
            run.expire_leases()
            if not run.started and self._clocks.steady() - run.loading_since >= LOADING_TIMEOUT_S:
                run.loading_since = self._clocks.steady()
                logger.warning("run %r: nobody has loaded its parameters for %g s", run.name, LOADING_TIMEOUT_S)
                self._spawn(self._delete_unstarted(run))

    async def _delete_unstarted(self, run: Run) -> None:
        async with self._lock(run.name):
            if not run.started and self._runs.get(run.name) is run:
                await self._delete(run)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(run.close(deleted=False) for run in self._runs.values()))

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _check_state_in_use(run: Run) -> None:
    """Raise Unavailable while some shard has yet to use the latest state that was loaded."""
    if run.started and run.loads_state:
        raise Unavailable(
            f"run {run.name!r}: shards have yet to use the state that was loaded before",
            reason="RUN_RECOVERING",
            run=run.name,
        )
