"""How a group gets into a live run: memory on every shard, then its parameters, then one recorded moment.

Until that moment nothing of the run has changed, and whatever goes wrong is undone or forgotten. From it on the run has
the group: shards that have not heard of it are told until they have, also by a coordinator that starts again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Final

from stepd import specs
from stepd.definitions import RunSpec
from stepd.errors import NotFound, StepdError, Unavailable
from stepd.limits import LOADING_TIMEOUT_S
from stepd.v1 import coordinator_pb2, run_pb2, shard_control_pb2
from stepd_server.coordinator.extension import Extension, extension_of
from stepd_server.coordinator.fleet import Fleet
from stepd_server.coordinator.run import Run

logger = logging.getLogger(__name__)

# As for a new run: taking memory, looking at what was loaded, giving memory back.
_PREPARE_S: Final = 120.0
_SEAL_S: Final = 120.0
_DROP_S: Final = 30.0


class Extending:
    """The groups that are being added, one for each run. Calls for one run come one after another."""

    def __init__(self, fleet: Fleet, lay_out: Callable[[RunSpec], run_pb2.Layout], steady: Callable[[], float]) -> None:
        self._fleet = fleet
        self._lay_out = lay_out
        self._steady = steady
        # By the run's id: a run of the same name that comes later has nothing to do with it.
        self._pending: dict[str, Extension] = {}

    async def add(self, run: Run, request: coordinator_pb2.AddGroupRequest) -> coordinator_pb2.AddGroupResponse:
        """Have all shards take memory for a group; undone if one cannot."""
        run.check_going()
        if request.request_id in run.record.changes:
            return coordinator_pb2.AddGroupResponse(spec=run.record.prepared.spec, layout=run.layout)
        self.check_free(run, request.request_id)
        self._fleet.check_complete()
        extension = self._pending.get(run.record.run_id)
        if extension is None or extension.id != request.request_id:
            extension = extension_of(request, run.spec, run.record.prepared.layout, self._lay_out, self._steady())
        extension = dataclasses.replace(extension, since=self._steady())
        prepared = shard_control_pb2.PrepareRunRequest(
            run_id=run.record.run_id,
            spec=specs.run_to_proto(extension.spec(run.spec)),
            layout=extension.layout,
        )
        self._pending[run.record.run_id] = extension
        try:
            answers = await self._fleet.call_all(
                "ExtendRun",
                shard_control_pb2.ExtendRunRequest(extension=extension.id, prepared=prepared),
                _PREPARE_S,
            )
        except BaseException:
            await self._give_up(run, extension.id)
            raise
        self._pending[run.record.run_id] = dataclasses.replace(extension, bytes=sum(answer.bytes for answer in answers))
        return coordinator_pb2.AddGroupResponse(spec=prepared.spec, layout=run.with_targets(prepared.layout))

    def check_free(self, run: Run, request_id: str = "") -> None:
        """Raise Unavailable while a group, or any but this one, is being added."""
        pending = self._pending.get(run.record.run_id)
        if pending and pending.id != request_id and self._steady() - pending.since < LOADING_TIMEOUT_S:
            raise Unavailable(f"another group is being added to run {run.name!r}", reason="GROUP_PENDING", run=run.name)

    async def commit(self, run: Run, request_id: str) -> None:
        """Make the group part of the run."""
        if request_id in run.record.changes:
            return
        pending = self._pending.get(run.record.run_id)
        if pending is None or pending.id != request_id:
            raise NotFound(
                f"run {run.name!r}: this group is not being added (any more)", run=run.name, request_id=request_id
            )
        run.check_going()
        self._fleet.check_complete()
        seal = shard_control_pb2.SealRunRequest(run=run.name, extension=request_id)
        await self._fleet.call_all("SealRun", seal, _SEAL_S)
        # The run may have changed meanwhile, but only in what its owner may change: the group still fits.
        try:
            run.extend(pending)
        except Unavailable:
            raise  # it is asked for again
        except BaseException:
            # Shards keep what they have of it until another takes its place: should it be on file after all, a
            # coordinator that starts again makes it part of the run.
            self._pending.pop(run.record.run_id, None)
            raise
        self._pending.pop(run.record.run_id, None)
        logger.info("run %r: has a further group of %d parameters", run.name, len(pending.parameters))

    async def abandon(self, run: Run, request_id: str) -> None:
        """Forget a group that was not committed."""
        pending = self._pending.get(run.record.run_id)
        if pending is not None and pending.id == request_id:
            await self._give_up(run, request_id)

    def forget(self, run: Run) -> None:
        """The run is deleted, and what shards hold of it with it."""
        self._pending.pop(run.record.run_id, None)

    async def _give_up(self, run: Run, extension: str) -> None:
        self._pending.pop(run.record.run_id, None)
        request = shard_control_pb2.SettleExtensionRequest(run=run.name, extension=extension, drop=True)
        try:
            await self._fleet.call_all("SettleExtension", request, _DROP_S)
        except StepdError as error:
            # The next extension takes its place.
            logger.warning("run %r: a shard could not drop an extension: %s", run.name, error)
