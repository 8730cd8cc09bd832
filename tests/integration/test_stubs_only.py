"""A client of nothing but the generated code: what it needs to know stands in the contract, in any language."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import grpc
from google.protobuf.duration_pb2 import Duration

import stepd
from stepd.v1 import coordinator_pb2 as c
from stepd.v1 import coordinator_pb2_grpc, round_pb2, run_pb2, shard_pb2, shard_pb2_grpc
from tests.patience import PATIENCE_S

VALUES = {"weight": [float(i) for i in range(200_000)], "bias": [1.0, 2.0, 3.0]}
SHAPES = {"weight": [400, 500], "bias": [3]}
LR = 0.25
CHUNK = 100_000  # elements


def spec(name: str) -> run_pb2.RunSpec:
    numbers = {"lr": LR, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0}
    hyperparameters = {key: run_pb2.Hyperparameter(number=value) for key, value in numbers.items()}
    hyperparameters |= {key: run_pb2.Hyperparameter(flag=False) for key in ("nesterov", "maximize")}
    return run_pb2.RunSpec(
        name=name,
        parameters=[
            run_pb2.ParameterSpec(name=key, shape=shape, dtype=run_pb2.D_TYPE_FLOAT32, group=0)
            for key, shape in SHAPES.items()
        ],
        groups=[
            run_pb2.GroupSpec(optimizer=run_pb2.OptimizerSpec(rule="SGD", hyperparameters=hyperparameters)),
        ],
        sync=run_pb2.SyncSpec(workers=1, reduction=run_pb2.REDUCTION_MEAN),
        on_nonfinite=run_pb2.NONFINITE_POLICY_SKIP,
        missing=run_pb2.MISSING_POLICY_SKIP,
    )


def flat(shard: run_pb2.ShardLayout, values: dict[str, list[float]]) -> list[float]:
    """A shard's flat space: its slices laid end to end."""
    tensors = list(values.values())
    return [x for piece in shard.slices for x in tensors[piece.parameter][piece.start : piece.start + piece.count]]


def chunks(values: list[float]) -> Iterator[shard_pb2.Chunk]:
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        yield shard_pb2.Chunk(offset=start, data=struct.pack(f"<{len(part)}f", *part))


def test_a_step_with_nothing_but_the_stubs(fleets: Callable[[int], stepd.LocalFleet], name: str) -> None:
    with grpc.insecure_channel(fleets(3).target) as channel:
        coordinator = coordinator_pb2_grpc.CoordinatorStub(channel)
        layout = coordinator.CreateRun(
            c.CreateRunRequest(request_id="once", spec=spec(name)), timeout=PATIENCE_S
        ).layout
        channels = [grpc.insecure_channel(shard.target) for shard in layout.shards]
        shards = [shard_pb2_grpc.ShardStub(each) for each in channels]

        for stub, piece in zip(shards, layout.shards, strict=True):
            parameters = flat(piece, VALUES)

            def load(parameters: list[float] = parameters) -> Iterator[shard_pb2.LoadParametersRequest]:
                yield shard_pb2.LoadParametersRequest(header=shard_pb2.LoadParametersHeader(run=name))
                for chunk in chunks(parameters):
                    yield shard_pb2.LoadParametersRequest(chunk=chunk)

            stub.LoadParameters(load(), timeout=PATIENCE_S)
        coordinator.StartRun(c.StartRunRequest(run=name), timeout=PATIENCE_S)

        joined = coordinator.JoinRun(
            c.JoinRunRequest(run=name, name="other", lease=Duration(seconds=30)), timeout=PATIENCE_S
        )
        gradient = {key: [2.0] * len(values) for key, values in VALUES.items()}
        for stub, piece in zip(shards, layout.shards, strict=True):
            contribution = flat(piece, gradient)

            def push(contribution: list[float] = contribution) -> Iterator[shard_pb2.PushRequest]:
                header = shard_pb2.PushHeader(run=name, member=joined.member, id=joined.run.round, weight=1)
                if contribution:
                    header.ranges.add(start=0, count=len(contribution))
                yield shard_pb2.PushRequest(header=header)
                for chunk in chunks(contribution):
                    yield shard_pb2.PushRequest(chunk=chunk)

            receipt = stub.Push(push(), timeout=PATIENCE_S)
            assert receipt.status == shard_pb2.RECEIPT_STATUS_ACCEPTED
            assert stub.Push(push(), timeout=PATIENCE_S).status == shard_pb2.RECEIPT_STATUS_DUPLICATE, "it counts once"

        after = {key: [0.0] * len(values) for key, values in VALUES.items()}
        tensors = list(after.values())
        for stub, piece in zip(shards, layout.shards, strict=True):
            request = shard_pb2.PullRequest(run=name, round=joined.run.round.round, member=joined.member)
            messages = stub.Pull(request, timeout=PATIENCE_S)
            header = next(messages).header
            assert header.step == 1
            assert header.decision.outcome == round_pb2.OUTCOME_APPLIED
            assert header.decision.groups[0].lr == LR
            received: list[float] = []
            for message in messages:
                assert message.chunk.offset == len(received)
                received += struct.unpack(f"<{len(message.chunk.data) // 4}f", message.chunk.data)
            at = 0
            for held in piece.slices:
                tensors[held.parameter][held.start : held.start + held.count] = received[at : at + held.count]
                at += held.count
            assert at == len(received)
        assert after == {key: [value - LR * 2 for value in values] for key, values in VALUES.items()}

        coordinator.LeaveRun(c.LeaveRunRequest(run=name, member=joined.member), timeout=PATIENCE_S)
        coordinator.DeleteRun(c.DeleteRunRequest(run=name), timeout=PATIENCE_S)
        for each in channels:
            each.close()
