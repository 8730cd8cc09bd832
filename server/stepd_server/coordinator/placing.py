"""Where a run's elements are to lie: what each costs a shard, and what must not be cut. Pure."""

from __future__ import annotations

from stepd.definitions import ParameterSpec, RunSpec
from stepd.layout import Slice, lay_out
from stepd.rules import Reach

__all__ = ["place"]


def place(spec: RunSpec, shards: int) -> tuple[tuple[Slice, ...], ...]:
    """The slices of each shard."""
    itemsize = spec.master.itemsize
    # A parameter, its place in the accumulator, its average and its buffers.
    common = 3 if spec.average else 2
    costs = [itemsize * (common + len(group.optimizer.buffers())) for group in spec.groups]
    whole = {
        id_: itemsize * _elements_of_whole(spec, parameter)
        for id_, parameter in enumerate(spec.parameters)
        if spec.groups[parameter.group].optimizer.reach is Reach.WHOLE
    }
    sizes = [parameter.size for parameter in spec.parameters]
    return lay_out(sizes, [costs[parameter.group] for parameter in spec.parameters], shards, whole=whole)


def _elements_of_whole(spec: RunSpec, parameter: ParameterSpec) -> int:
    """What a tensor that is not cut costs in all: its rule's buffers may have sizes of their own."""
    common = 3 if spec.average else 2
    buffers = spec.groups[parameter.group].optimizer.buffers()
    return common * parameter.size + sum(buffer.size(parameter.shape) for buffer in buffers) if parameter.size else 0
