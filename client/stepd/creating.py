"""How a run comes to be: laid out by the coordinator, loaded by whoever creates it, opened."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from typing import Final

from stepd.buffers import Array
from stepd.errors import AlreadyExists, FailedPrecondition, NotFound, StepdError, Unavailable
from stepd.parameters import ParameterTable
from stepd.retry import PAUSE_S_MAX, PAUSE_S_MIN
from stepd.session import UNDONE_AFTER, Session
from stepd.specs import run_from_proto
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2, run_pb2

# For taking back a run that could not be loaded.
UNDO_S: Final = 5.0

Opened = tuple[run_pb2.RunSpec, run_pb2.Layout]


async def create(session: Session, spec: run_pb2.RunSpec, masters: Sequence[Array]) -> Opened:
    """Create a run, give it its parameters, and open it. AlreadyExists if the name is taken."""
    patience = session.patience(f"creating run {spec.name!r}")
    # One for all tries: what an earlier one has left is ours to go on with.
    request = coordinator_pb2.CreateRunRequest(request_id=uuid.uuid4().hex, spec=spec)
    while True:
        patience.begin()
        try:
            return await _create_once(session, request, masters)
        except NotFound as error:
            # A server was started again while the parameters were on their way; what it had of them is gone.
            lost = Unavailable(str(error), reason="RUN_RECOVERING", run=spec.name)
            await asyncio.sleep(patience.pause(lost))


async def _create_once(session: Session, request: coordinator_pb2.CreateRunRequest, masters: Sequence[Array]) -> Opened:
    created: coordinator_pb2.CreateRunResponse = await session.ask("CreateRun", request)
    try:
        streams = RunStreams(
            session, created.run.spec, created.layout, ParameterTable(run_from_proto(created.run.spec).parameters)
        )
        await streams.load(dict(enumerate(masters)))
        await session.ask(
            "StartRun", coordinator_pb2.StartRunRequest(run=created.run.spec.name, run_id=created.run.run_id)
        )
    except UNDONE_AFTER:
        # The name is not to stay taken by a run that nobody can use. (If this is lost too, the coordinator drops it.)
        await asyncio.shield(_take_back(session, created.run))
        raise
    return created.run.spec, created.layout


async def create_or_find(session: Session, spec: run_pb2.RunSpec, masters: Sequence[Array]) -> Opened:
    """As create, or else the run of that name: one of many that call this at once creates it, the others wait."""
    while True:
        with contextlib.suppress(AlreadyExists):
            return await create(session, spec, masters)
        with contextlib.suppress(NotFound):  # gone meanwhile: its creator could not load it
            return await find_open(session, spec)


async def find_open(session: Session, spec: run_pb2.RunSpec) -> Opened:
    """The run of that name once its parameters are loaded; the coordinator drops one that nobody loads."""
    pause = PAUSE_S_MIN
    while True:
        found: coordinator_pb2.GetRunResponse = await session.ask(
            "GetRun", coordinator_pb2.GetRunRequest(run=spec.name)
        )
        check_same_parameters(spec, found.run.spec)
        if found.run.status != coordinator_pb2.RUN_STATUS_LOADING:
            return found.run.spec, found.layout
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_S_MAX / 4)


def check_same_parameters(given: run_pb2.RunSpec, found: run_pb2.RunSpec) -> None:
    """Raise RUN_DIFFERS, naming the first parameter that is not the same in both. Their order does not matter."""
    there = {parameter.name: _describe(parameter) for parameter in found.parameters}
    here = {parameter.name: _describe(parameter) for parameter in given.parameters}
    for name in [*here, *there]:
        if here.get(name) != there.get(name):
            raise FailedPrecondition(
                f"run {given.name!r} exists with other parameters: {name!r} is {there.get(name, 'not there')}, "
                f"and {here.get(name, 'not there')} here",
                reason="RUN_DIFFERS",
                run=given.name,
                parameter=name,
                expected=there.get(name),
                given=here.get(name),
            )


def _describe(parameter: run_pb2.ParameterSpec) -> str:
    dtype = run_pb2.DType.Name(parameter.dtype).removeprefix("D_TYPE_").lower()
    return f"{dtype} of shape {tuple(parameter.shape)}"


async def _take_back(session: Session, ours: coordinator_pb2.RunState) -> None:
    name = ours.spec.name
    with contextlib.suppress(StepdError, TimeoutError):
        async with asyncio.timeout(UNDO_S):
            found: coordinator_pb2.GetRunResponse = await session.ask("GetRun", coordinator_pb2.GetRunRequest(run=name))
            # It may be gone, and the name another's.
            if found.run.run_id == ours.run_id and found.run.status == coordinator_pb2.RUN_STATUS_LOADING:
                await session.ask("DeleteRun", coordinator_pb2.DeleteRunRequest(run=name, run_id=ours.run_id))
