"""Reading and loading the state of the optimizer, one for all shards."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

from stepd import specs, torch_form, wire
from stepd.definitions import RunSpec
from stepd.errors import Aborted, InvalidArgument, NotFound, Unavailable
from stepd.layout import slices_of
from stepd.session import together
from stepd.settings import detail
from stepd.specs import hyperparameter_to_proto
from stepd.state_space import OptimizerState, StatePicture
from stepd.streams import RunStreams
from stepd.torch_form import StateDict
from stepd.v1 import coordinator_pb2, shard_pb2


async def read_state_dict(streams: RunStreams) -> StateDict:
    """The state of one version of the run, in torch's form."""
    while True:
        spec, picture, before = await _look(streams)
        try:
            state, step = await _read(streams, picture)
        except Aborted as error:
            if error.reason != "LAYOUT_CHANGED":
                raise
            continue  # a group was added
        _, _, after = await _look(streams)
        if after.spec == before.spec:
            break
        # Hyperparameters were changed meanwhile: they may belong to another state.
    rates = list(after.rates)
    if after.step != step:
        rates = [spec.schedule_of(g).rate(step, group.optimizer.lr) for g, group in enumerate(spec.groups)]
    return torch_form.write(spec, state, rates)


async def load_state_dict(streams: RunStreams, state_dict: object) -> None:
    """Put a state into use on all shards or on none."""
    spec, picture, _ = await _look(streams)
    loaded = torch_form.read(spec, state_dict)
    state_id = uuid.uuid4().hex
    regions = picture.flat(loaded.state)
    views = dict(enumerate(regions))

    async def stage(shard: int) -> None:
        header = picture.header(streams.run, state_id, shard, loaded.state)
        raw = wire.encode_header(shard_pb2.StageStateRequest, header)
        await streams.give("StageState", shard, raw, picture.push(shard), views)

    changes = [
        coordinator_pb2.GroupChange(
            hyperparameters={name: hyperparameter_to_proto(value) for name, value in _fitting(spec, g, given).items()}
        )
        for g, given in enumerate(loaded.hyperparameters)
    ]
    request = coordinator_pb2.LoadStateRequest(run=streams.run, state_id=state_id, groups=changes)
    patience = streams.session.patience(f"loading a state of run {streams.run!r}")
    while True:
        patience.begin()
        await together(stage(shard) for shard in picture.shards)
        try:
            await streams.session.ask("LoadState", request)
            return
        except NotFound as error:
            if error.reason != NotFound.default_reason:
                raise
            # A shard was started again between the two calls; what it had been sent is gone.
            lost = Unavailable(str(error), reason="RUN_RECOVERING", run=streams.run)
            await asyncio.sleep(patience.pause(lost))


def _fitting(spec: RunSpec, group: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as the rule's fields have them."""
    rule = type(spec.groups[group].optimizer)
    if not given:
        return {}
    try:
        whole = rule(**vars(spec.groups[group].optimizer) | dict(given))
    except TypeError as error:
        raise InvalidArgument(f"group {group}: {error}", group=group, given=detail(given)) from error
    return {name: getattr(whole, name) for name in given}


async def _look(streams: RunStreams) -> tuple[RunSpec, StatePicture, coordinator_pb2.RunState]:
    """The run as it is now: hyperparameters may have changed since it was opened."""
    found: coordinator_pb2.GetRunResponse = await streams.session.ask(
        "GetRun", coordinator_pb2.GetRunRequest(run=streams.run)
    )
    spec = specs.run_from_proto(found.run.spec)
    slices = [slices_of(shard) for shard in found.layout.shards]
    return spec, StatePicture(spec, slices, found.layout.version), found.run


async def _read(streams: RunStreams, picture: StatePicture) -> tuple[OptimizerState, int]:
    """The state and the step that it is of."""
    regions = picture.regions()
    patience = streams.session.patience(f"reading the state of run {streams.run!r}")

    async def pull(shard: int, step: int | None) -> shard_pb2.PullHeader:
        request = shard_pb2.PullRequest(run=streams.run, step=step, state=True)
        return await streams.pull(shard, request, picture, regions, lambda header: picture.check(shard, header))

    headers: dict[int, shard_pb2.PullHeader] = {}
    behind, step = picture.shards, None
    while True:
        patience.begin()
        try:
            found = await together(pull(shard, step) for shard in behind)
        except Aborted as error:
            if error.reason == "LAYOUT_CHANGED":
                raise
            # The fleet went on meanwhile: from the beginning, with the version there is now.
            await asyncio.sleep(patience.pause(error))
            behind, step = picture.shards, None
            continue
        headers |= dict(zip(behind, found, strict=True))
        newest = max(header.step for header in headers.values())
        behind, step = [shard for shard, header in headers.items() if header.step < newest], newest
        if behind:
            continue
        if len({header.state_id for header in headers.values()}) == 1:
            return picture.state(headers, regions), newest
        # Another state is being loaded, shard by shard.
        mixed = Aborted(f"run {streams.run!r} has another state on some shards", reason="VERSION_PASSED")
        await asyncio.sleep(patience.pause(mixed))
        behind, step = picture.shards, None
