"""Small models: a step is one message to each shard and one back, and means what streams mean."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

import stepd
from stepd.limits import AT_ONCE_BYTES_MAX
from stepd.session import Session
from stepd.streams import RunStreams
from stepd.v1 import coordinator_pb2 as c
from stepd.v1 import coordinator_pb2_grpc, shard_pb2, shard_pb2_grpc
from tests.patience import PATIENCE_S

F4 = np.float32


def gradient(step: int, rank: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng((step, rank))
    return {"w": rng.standard_normal((40, 5), F4), "b": rng.standard_normal(7, F4)}


def train(run: stepd.Run, monkeypatch: pytest.MonkeyPatch, most: int) -> tuple[list[dict[str, Any]], int]:
    """The parameters after each of five steps of two workers, and how many messages brought both."""
    monkeypatch.setattr(Session, "at_once_bytes", most)
    calls, both = [], RunStreams.push_and_pull

    async def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[1])
        return await both(*args, **kwargs)

    monkeypatch.setattr(RunStreams, "push_and_pull", counted)
    found: list[dict[str, Any]] = []

    def work(rank: int) -> None:
        with run.join(rank=rank) as worker:
            for step in range(5):
                params = worker.step(gradient(step, rank)).params
                if rank == 0:
                    found.append({name: array.copy() for name, array in params.items()})

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, len(calls)


@pytest.mark.parametrize("wire", ["float32", stepd.Wire("bfloat16", "bfloat16")])
def test_the_bits_are_those_of_streams(
    client: stepd.Client, name: str, monkeypatch: pytest.MonkeyPatch, wire: Any
) -> None:
    found = []
    for most in (0, AT_ONCE_BYTES_MAX):
        run = client.create_run(
            f"{name}-{most}",
            gradient(100),
            optimizer=stepd.AdamW(0.1),
            clip=stepd.ClipNorm(1.0),
            sync=stepd.Sync(workers=2, deterministic=True),
            wire=wire,
        )
        found.append(train(run, monkeypatch, most))
        run.delete()
    (streamed, none), (at_once, calls) = found
    assert (none, len(streamed)) == (0, 5)
    assert calls >= 2 * 5
    for one, other in zip(streamed, at_once, strict=True):
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])


def test_it_counts_once_with_nothing_but_the_stubs(fleets: Callable[[int], stepd.LocalFleet], name: str) -> None:
    with stepd.connect(fleets(1).target) as client:
        run = client.create_run(name, {"w": np.zeros(3, F4)}, optimizer=stepd.SGD(lr=0.5))
        with grpc.insecure_channel(fleets(1).target) as channel:
            coordinator = coordinator_pb2_grpc.CoordinatorStub(channel)
            joined = coordinator.JoinRun(
                c.JoinRunRequest(run=name, name="other", lease=Duration(seconds=30)), timeout=PATIENCE_S
            )
            header = shard_pb2.PushHeader(run=name, member=joined.member, id=joined.run.round, weight=1)
            header.ranges.add(start=0, count=3)
            chunk = shard_pb2.Chunk(data=np.ones(3, F4).tobytes())
            request = shard_pb2.PushAndPullRequest(
                push=[shard_pb2.PushRequest(header=header), shard_pb2.PushRequest(chunk=chunk)],
                pull=shard_pb2.PullRequest(run=name, round=joined.run.round.round, member=joined.member),
            )
            with grpc.insecure_channel(joined.layout.shards[0].target) as to_shard:
                stub = shard_pb2_grpc.ShardStub(to_shard)
                first, again = stub.PushAndPull(iter([request] * 2), timeout=PATIENCE_S)
            assert [first.receipt.status, again.receipt.status] == [
                shard_pb2.RECEIPT_STATUS_ACCEPTED,
                shard_pb2.RECEIPT_STATUS_DUPLICATE,
            ]
            for answer in (first, again):
                assert answer.pulled[0].header.step == 1
                np.testing.assert_array_equal(np.frombuffer(answer.pulled[1].chunk.data, F4), [-0.5] * 3)
            coordinator.LeaveRun(c.LeaveRunRequest(run=name, member=joined.member), timeout=PATIENCE_S)
        run.delete()


def test_a_shard_does_not_do_much_at_once(fleets: Callable[[int], stepd.LocalFleet], name: str) -> None:
    with stepd.connect(fleets(1).target) as client:
        run = client.create_run(name, {"w": np.zeros(AT_ONCE_BYTES_MAX // 4 + 1, F4)}, optimizer=stepd.SGD(lr=0.5))
        (shard,) = client.fleet().shards
        request = shard_pb2.PushAndPullRequest(
            push=[shard_pb2.PushRequest(header=shard_pb2.PushHeader(run=name))], pull=shard_pb2.PullRequest(run=name)
        )
        with grpc.insecure_channel(shard.target) as channel, pytest.raises(grpc.RpcError) as caught:
            list(shard_pb2_grpc.ShardStub(channel).PushAndPull(iter([request]), timeout=PATIENCE_S))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "pull must be up to 65536 bytes" in caught.value.details()
        run.delete()


def test_who_does_not_know_a_group_yet_is_told_of_it(fleets: Callable[[int], stepd.LocalFleet], name: str) -> None:
    """And not that the run with it is too large for one call."""
    with stepd.connect(fleets(1).target) as client:
        run = client.create_run(name, {"w": np.zeros(3, F4)}, optimizer=stepd.SGD(lr=0.5))
        with run.join() as worker:
            worker.step({"w": np.ones(3, F4)})
            run.add_param_group(stepd.ParamGroup({"large": np.zeros(AT_ONCE_BYTES_MAX, F4)}))
            (shard,) = client.fleet().shards
            header = shard_pb2.PushHeader(run=name, weight=1, sequence=2)
            header.ranges.add(start=0, count=3)
            request = shard_pb2.PushAndPullRequest(
                push=[shard_pb2.PushRequest(header=header)], pull=shard_pb2.PullRequest(run=name, round=1)
            )
            with grpc.insecure_channel(shard.target) as channel, pytest.raises(grpc.RpcError) as caught:
                list(shard_pb2_grpc.ShardStub(channel).PushAndPull(iter([request]), timeout=PATIENCE_S))
            assert caught.value.code() is grpc.StatusCode.ABORTED
            assert "a group was added" in caught.value.details()
            assert worker.step({"w": np.ones(3, F4)}).params["large"].size == AT_ONCE_BYTES_MAX
        run.delete()
