"""A group on its way into a run on its shards: beside it, then part of it, or gone without a trace."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from stepd.layout import extend, lay_out, to_proto
from stepd.rules import NAdam, Rule
from stepd.specs import optimizer_to_proto
from stepd.v1 import round_pb2, run_pb2, shard_control_pb2, shard_pb2
from stepd_server.shard.extending import Extension
from stepd_server.shard.service import stage

from .shard_bench import BLOCK, Arrays, Fleet, apply, arrays, chunks, member, reopen, run

NEW: dict[str, np.ndarray] = {"v": np.arange(50, dtype=np.float32), "u": np.full(1, 3.0, np.float32)}


def request(fleet: Fleet, params: Arrays, rule: Rule, id: str = "x") -> shard_control_pb2.ExtendRunRequest:
    """A group as the coordinator lays it out."""
    prepared = shard_control_pb2.PrepareRunRequest(run_id="1", spec=fleet.spec)
    first, group = len(prepared.spec.parameters), len(prepared.spec.groups)
    for name, array in params.items():
        prepared.spec.parameters.add(name=name, shape=array.shape, dtype=run_pb2.D_TYPE_FLOAT32, group=group)
    prepared.spec.groups.add(optimizer=optimizer_to_proto(rule))
    tail = to_proto(
        lay_out([a.size for a in params.values()], [16] * len(params), len(fleet.shards), block=BLOCK),
        ["x:1"] * len(fleet.shards),
        run_pb2.D_TYPE_FLOAT32,
        BLOCK,
    )
    for shard in tail.shards:
        for piece in shard.slices:
            piece.parameter += first
    prepared.layout.CopyFrom(extend(fleet.layout, tail))
    return shard_control_pb2.ExtendRunRequest(extension=id, prepared=prepared)


async def load(fleet: Fleet, wanted: shard_control_pb2.ExtendRunRequest, params: Arrays) -> None:
    """Stage an extension on every shard, load and seal it."""
    names = [p.name for p in wanted.prepared.spec.parameters]
    for index, shard in enumerate(fleet.shards):
        extension = stage(shard, wanted, index)
        parts = [
            params[names[s.parameter]].ravel()[s.start : s.stop]
            for s in extension.arena.piece.slices[len(shard.arena.piece.slices) :]
        ]
        await extension.load(chunks(np.concatenate([*parts, np.empty(0, np.float32)])))
        extension.seal()


async def settle(fleet: Fleet, wanted: shard_control_pb2.ExtendRunRequest, params: Arrays, from_round: int = 0) -> None:
    await asyncio.gather(*(shard.settle(wanted.prepared.layout.version, from_round) for shard in fleet.shards))
    know(fleet, wanted, params)


def know(fleet: Fleet, wanted: shard_control_pb2.ExtendRunRequest, params: Arrays) -> None:
    fleet.spec, fleet.layout, fleet.params = wanted.prepared.spec, wanted.prepared.layout, {**fleet.params, **params}


def files(fleet: Fleet) -> dict[str, int]:
    return {
        str(path.relative_to(fleet.folder)): path.stat().st_size for path in fleet.folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_a_settled_extension_is_as_if_the_run_had_been_created_so(tmp_path: Path, shards: int) -> None:
    """What was there keeps every value; what is new begins at its own beginning; a new process finds all of it."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path / "a", arrays(0), NAdam(lr=0.1), shards)
        await fleet.start()
        await fleet.step(arrays(1), lr=0.1)
        before = await fleet.pull()
        wanted = request(fleet, NEW, NAdam(lr=0.5))
        await load(fleet, wanted, NEW)
        await fleet.step(arrays(2), round=1, lr=0.1)  # the run goes on meanwhile
        await settle(fleet, wanted, NEW)
        after = await fleet.pull(layout_version=1)
        assert list(after) == [*before, *NEW]
        for name, value in NEW.items():
            np.testing.assert_array_equal(after[name], value)

        alone = Fleet(tmp_path / "b", arrays(0), NAdam(lr=0.1), 1)
        await alone.start()
        for round, seed in enumerate((1, 2, 3)):
            await alone.step(arrays(seed), round=round, lr=0.1)
        other = Fleet(tmp_path / "c", NEW, NAdam(lr=0.5), 1)
        await other.start()
        await other.step(NEW, lr=0.5)

        fleet.shards = [reopen(fleet.folder, index) for index in range(shards)]
        grads = {**arrays(3), **NEW}
        gathered = asyncio.create_task(fleet.gather((0,), 2, layout_version=1))
        await asyncio.sleep(0)
        await fleet.push(grads, round=2, layout_version=1)
        await gathered
        rates = [round_pb2.GroupRates(lr=lr, clip_scale=1.0) for lr in (0.1, 0.5)]
        decision = apply(2)
        del decision.groups[:]
        decision.groups.extend(rates)
        assert await fleet.finish(decision) == [3] * shards
        after = await fleet.pull(layout_version=1)
        for name, value in {**await alone.pull(), **await other.pull()}.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)

    run(scenario)


def test_an_extension_that_is_sealed_outlives_the_process(tmp_path: Path) -> None:
    """It is settled by whichever call comes first; the next round's gathering is one. One not sealed is forgotten."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        wanted = request(fleet, NEW, NAdam())
        stage(fleet.shards[0], wanted, 0)
        assert reopen(fleet.folder, 0).extension is None
        await load(fleet, wanted, NEW)
        fleet.shards = [reopen(fleet.folder, index) for index in range(2)]
        know(fleet, wanted, NEW)
        gathered = asyncio.create_task(fleet.gather((0,), layout_version=1))
        await asyncio.sleep(0)
        await fleet.push({**arrays(1), **NEW}, layout_version=1)
        await gathered
        await settle(fleet, wanted, {})  # done already
        assert [reopen(fleet.folder, index).arena.piece.version for index in range(2)] == [1, 1]

    run(scenario)


@pytest.mark.parametrize("how", ["dropped", "replaced", "no room"])
def test_an_extension_that_comes_to_nothing_leaves_no_trace(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0), shards=2)
        await fleet.start()
        before = files(fleet)
        wanted = request(fleet, NEW, NAdam())
        if how == "no room":
            allocate, taken = os.posix_fallocate, [0]

            def full(descriptor: int, start: int, length: int) -> None:
                taken[0] += 1
                if taken[0] > 5:
                    raise OSError(errno.ENOSPC, "no space")
                allocate(descriptor, start, length)

            monkeypatch.setattr(os, "posix_fallocate", full)
            with pytest.raises(ResourceExhausted):
                stage(fleet.shards[1], wanted, 1)
            monkeypatch.undo()
        else:
            await load(fleet, wanted, NEW)
            assert files(fleet) != before
            if how == "replaced":
                small = request(fleet, {"t": np.ones(1, np.float32)}, NAdam(), "y")
                staged = [stage(shard, small, index) for index, shard in enumerate(fleet.shards)]
            else:
                staged = [extension for shard in fleet.shards if (extension := shard.extension)]
            for shard, extension in zip(fleet.shards, staged, strict=True):
                extension.drop()
                shard.extension = None
        assert files(fleet) == before
        await fleet.step(arrays(1))
        np.testing.assert_array_equal((await fleet.pull())["big"], fleet.params["big"] - arrays(1)["big"])

    run(scenario)


def test_memory_that_was_given_back_is_not_written_to(tmp_path: Path) -> None:
    """A stream of parameters that is still under way is ended; so is one for an extension that has gone."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        extension = stage(fleet.shards[0], request(fleet, NEW, NAdam()), 0)
        flat = np.concatenate([array.ravel() for array in NEW.values()])
        loading = asyncio.create_task(extension.load(chunks(flat)))
        await asyncio.sleep(0)
        extension.drop()
        with pytest.raises(NotFound):
            await loading
        with pytest.raises(NotFound):
            await extension.load(chunks(flat))

    run(scenario)


def test_what_is_no_extension_is_refused(tmp_path: Path) -> None:
    """Of another run, of a version that is there or not next, of another beginning, not loaded, not sealed."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        shard = fleet.shards[0]
        for change, kind in (
            ({"run_id": "2"}, FailedPrecondition),
            ({"version": 0}, FailedPrecondition),
            ({"version": 2}, Unavailable),
            ({"count": 1}, InvalidArgument),
        ):
            wanted = request(fleet, NEW, NAdam())
            wanted.prepared.run_id = str(change.get("run_id", "1"))
            wanted.prepared.layout.version = int(change.get("version", 1))
            if "count" in change:
                wanted.prepared.layout.shards[0].slices[0].count = 8
            with pytest.raises(kind):
                stage(shard, wanted, 0)
        extension = stage(shard, request(fleet, NEW, NAdam()), 0)
        assert stage(shard, request(fleet, NEW, NAdam()), 0) is extension
        with pytest.raises(FailedPrecondition, match="lacks"):
            extension.seal()
        with pytest.raises(FailedPrecondition, match="version 1"):
            await shard.settle(1, 0)
        with pytest.raises(InvalidArgument, match=r"'v' must be finite"):
            await extension.load(chunks(np.full(51, np.nan, np.float32)))
        with pytest.raises(InvalidArgument, match="ended after 50 of 51"):
            await extension.load(chunks(np.zeros(50, np.float32)))
        assert isinstance(extension, Extension)

    run(scenario)


def test_who_goes_by_the_older_layout_is_told(tmp_path: Path) -> None:
    """Pushes, and pulls that wait; not a pull that has begun, nor a push to a round that is over."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        await fleet.step(arrays(1))
        shard, wanted = fleet.shards[0], request(fleet, NEW, NAdam())
        before = await fleet.pull()
        reading = shard.pull(shard_pb2.PullRequest(run="run"))
        read = [await anext(reading)]
        gathered = asyncio.create_task(fleet.gather((0, 1), 1))
        await asyncio.sleep(0)
        await fleet.push(arrays(2), 0, 1)
        waiting = asyncio.create_task(fleet.pull(round=1))
        early = asyncio.create_task(shard.push(header(1, 1, version=1), chunks(np.empty(0))))
        await asyncio.sleep(0)
        await load(fleet, wanted, NEW)
        await shard.settle(1, 1)
        for task in (waiting, asyncio.create_task(fleet.push(arrays(2), 1, 1)), asyncio.create_task(fleet.pull())):
            with pytest.raises(Aborted) as caught:
                await task
            assert (caught.value.reason, caught.value.details["layout_version"]) == ("LAYOUT_CHANGED", 1)
        with pytest.raises(Aborted) as caught:
            await gathered
        assert caught.value.reason == "ROUND_RESTARTED"
        read += [message async for message in reading]
        assert sum(map(len, read)) > before["big"].nbytes
        assert (await shard.push(header(0, 0), chunks(np.empty(0)))).status == shard_pb2.RECEIPT_STATUS_DUPLICATE
        know(fleet, wanted, NEW)
        assert not early.done()  # it knows more than the shard did, and waits for its attempt
        gathered = asyncio.create_task(fleet.gather((1,), 1, attempt=1, layout_version=1))
        with pytest.raises(Aborted) as caught:
            await early
        assert caught.value.reason == "ROUND_RESTARTED"
        await fleet.push({}, 1, 1, attempt=1, layout_version=1)
        assert (await gathered)[0].run_norms[1].HasField("powers")

    def header(rank: int, round: int, version: int = 0) -> shard_pb2.PushHeader:
        id = round_pb2.RoundId(round=round)
        return shard_pb2.PushHeader(run="run", member=member(rank), id=id, weight=1.0, layout_version=version)

    run(scenario)


def test_a_round_that_is_decided_is_finished_before_the_run_is_extended(tmp_path: Path) -> None:
    """Settling names the first round that it counts for, and waits for the one before."""

    async def scenario() -> None:
        fleet = Fleet(tmp_path, arrays(0))
        await fleet.start()
        wanted = request(fleet, NEW, NAdam())
        await load(fleet, wanted, NEW)
        gathered = asyncio.create_task(fleet.gather((0,)))
        await asyncio.sleep(0)
        await fleet.push(arrays(1))
        await gathered
        settled = asyncio.create_task(settle(fleet, wanted, NEW, from_round=1))
        await asyncio.sleep(0)
        assert fleet.shards[0].arena.piece.version == 0
        await fleet.finish(apply(0))
        await settled
        after: dict[str, Any] = await fleet.pull(layout_version=1)
        np.testing.assert_array_equal(after["big"], arrays(0)["big"] - arrays(1)["big"])

    run(scenario)


def test_a_run_with_an_average_grows_with_it(tmp_path: Path) -> None:
    """The average of what is new begins as what it is, not as nothing; what is old keeps its own."""

    async def scenario() -> None:
        average = run_pb2.AverageSpec(exponential=run_pb2.ExponentialAverage(decay=0.5))
        fleet = Fleet(tmp_path, arrays(0), NAdam(lr=0.1), 2, average=average)
        await fleet.start()
        await fleet.step(arrays(1), lr=0.1)
        before = await fleet.pull(averaged=True)
        wanted = request(fleet, NEW, NAdam(lr=0.5))
        await load(fleet, wanted, NEW)
        await settle(fleet, wanted, NEW)
        for name, value in {**before, **NEW}.items():
            pulled = await fleet.pull(averaged=True, layout_version=1)
            np.testing.assert_array_equal(pulled[name], value, err_msg=name)

    run(scenario)
