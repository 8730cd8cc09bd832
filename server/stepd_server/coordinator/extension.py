"""A group on its way into a live run: what the run will be with it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from stepd import specs
from stepd.definitions import GroupSpec, ParameterSpec, RunSpec, check_master
from stepd.layout import extend
from stepd.settings import refuse
from stepd.v1 import coordinator_pb2, run_pb2
from stepd_server.coordinator.abilities import check_trainable
from stepd_server.coordinator.cycling import cycled_group


@dataclass(frozen=True)
class Extension:
    """A group that shards hold beside the run, until its parameters are loaded and it is committed.

    Attributes:
        id: the request_id that it was added with.
        group: what is added.
        parameters: of the group, as they stand in the extended run.
        layout: of the run with them.
        since: when it was last asked for, on the steady clock.
        bytes: that all shards hold with it.
    """

    id: str
    group: GroupSpec
    parameters: tuple[ParameterSpec, ...]
    layout: run_pb2.Layout
    since: float
    bytes: int = 0

    def spec(self, run: RunSpec) -> RunSpec:
        """The run with the group. Raises as creating the run so would have."""
        check_master(run, self.parameters)
        spec = replace(run, parameters=(*run.parameters, *self.parameters), groups=(*run.groups, self.group))
        check_trainable(spec)
        return spec


def _alone(run: RunSpec, extension: Extension) -> RunSpec:
    """A run of nothing but the group."""
    return replace(run, parameters=tuple(replace(p, group=0) for p in extension.parameters), groups=(extension.group,))


def extension_of(
    request: coordinator_pb2.AddGroupRequest,
    run: RunSpec,
    layout: run_pb2.Layout,
    lay_out: Callable[[RunSpec], run_pb2.Layout],
    now: float,
) -> Extension:
    """What a request adds to a run that stands so.

    Args:
        request: the group.
        run: as it is.
        layout: of the run as it is.
        lay_out: gives the layout of a run by itself.
        now: on the steady clock.
    """
    if not request.parameters:
        refuse(f"run {run.name!r}", "parameters", [], "at least one parameter")
    numbered = run_pb2.RunSpec(parameters=request.parameters)
    for parameter in numbered.parameters:
        parameter.group = len(run.groups)
    extension = Extension(
        request.request_id,
        cycled_group(specs.group_from_proto(request.group), run.schedule),
        specs.parameters_from_proto(numbered),
        layout,
        now,
    )
    extension.spec(run)  # refuses what cannot be, before anything is laid out
    tail = lay_out(_alone(run, extension))
    for shard in tail.shards:
        for piece in shard.slices:
            piece.parameter += len(run.parameters)
    return replace(extension, layout=extend(layout, tail))
