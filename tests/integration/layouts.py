"""Where the parameters of a run lie, as the contract tells it."""

from __future__ import annotations

import grpc

import stepd
from stepd.v1 import coordinator_pb2, coordinator_pb2_grpc


def shards_of(client: stepd.Client, run: str) -> dict[str, int]:
    """By name of the parameter: on how many shards it has elements."""
    with grpc.insecure_channel(client.target) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        found = stub.GetRun(coordinator_pb2.GetRunRequest(run=run))
    names = [parameter.name for parameter in found.run.spec.parameters]
    holders: dict[str, set[int]] = {name: set() for name in names}
    for index, shard in enumerate(found.layout.shards):
        for piece in shard.slices:
            holders[names[piece.parameter]].add(index)
    return {name: len(shards) for name, shards in holders.items()}
