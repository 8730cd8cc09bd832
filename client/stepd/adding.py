"""How a group gets into a live run: laid out by the coordinator, loaded by whoever adds it, committed."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from typing import Final

from stepd import specs
from stepd.buffers import Array
from stepd.definitions import GroupSpec, ParameterSpec
from stepd.errors import NotFound, StepdError, Unavailable
from stepd.parameters import ParameterTable
from stepd.session import UNDONE_AFTER
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2

# For giving up a group that could not be loaded.
UNDO_S: Final = 5.0


async def add_group(
    streams: RunStreams, group: GroupSpec, parameters: Sequence[ParameterSpec], masters: Sequence[Array]
) -> None:
    """Add a group with the values of its parameters to the run, and know of it."""
    request = coordinator_pb2.AddGroupRequest(
        request_id=uuid.uuid4().hex,
        run=streams.run,
        group=specs.group_to_proto(group),
        parameters=map(specs.parameter_to_proto, parameters),
    )
    patience = streams.session.patience(f"adding a group to run {streams.run!r}")
    while True:
        patience.begin()
        added: coordinator_pb2.AddGroupResponse = await streams.session.ask("AddGroup", request)
        try:
            await _load_and_commit(streams, request.request_id, added, masters)
            break
        except NotFound as error:
            # A server was started again meanwhile, and what it had of the group is gone.
            lost = Unavailable(str(error), reason="RUN_RECOVERING", run=streams.run)
            await asyncio.sleep(patience.pause(lost))
        except UNDONE_AFTER:
            await asyncio.shield(_give_up(streams, request.request_id))
            raise
    await streams.state()


async def _load_and_commit(
    streams: RunStreams, request_id: str, added: coordinator_pb2.AddGroupResponse, masters: Sequence[Array]
) -> None:
    table = ParameterTable(specs.parameters_from_proto(added.spec))
    extended = RunStreams(streams.session, added.spec, added.layout, table)
    first = len(table.specs) - len(masters)
    await extended.load(dict(enumerate(masters, first)), extension=request_id)
    commit = coordinator_pb2.CommitGroupRequest(run=streams.run, request_id=request_id)
    await streams.session.ask("CommitGroup", commit)


async def _give_up(streams: RunStreams, request_id: str) -> None:
    """Let others add groups; if this is lost too, the coordinator waits a while for us."""
    abandon = coordinator_pb2.CommitGroupRequest(run=streams.run, request_id=request_id, abandon=True)
    with contextlib.suppress(StepdError, TimeoutError):
        async with asyncio.timeout(UNDO_S):
            await streams.session.ask("CommitGroup", abandon)
