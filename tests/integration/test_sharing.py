"""Gradients and parameters through memory that workers share with shards: the same steps, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepd
from stepd.sharing import Sharing
from tests.patience import PATIENCE_S

Connect = Callable[..., stepd.Client]
Arrays = dict[str, Any]
# Enough for two shards to have blocks of each; small parameters go along.
SHAPES: dict[str, tuple[int, ...]] = {"w": (300, 1000), "b": (7,), "s": (), "e": (0, 3)}


def random(seed: int, dtype: str = "float32") -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def trained(client: stepd.Client, name: str, *, steps: int = 4, workers: int = 1, **options: Any) -> Arrays:
    params = random(0, options.pop("dtype", "float32"))
    run = client.create_run(
        name, params, optimizer=stepd.AdamW(0.01), clip=stepd.ClipNorm(1.0), sync=stepd.Sync(workers=workers), **options
    )
    with run.join() as worker:
        for step in range(steps):
            params = worker.step(random(step + 1, str(params["w"].dtype))).params
        return {key: value.copy() for key, value in params.items()}


def shared_by(pid: int) -> int:
    """How many memories of workers a process maps."""
    return Path(f"/proc/{pid}/maps").read_text().count("stepd-gradients")


def until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_bits_are_those_of_sending(connect: Connect, name: str, dtype: str) -> None:
    sent = trained(connect(2, transport="grpc"), f"{name}-sent", dtype=dtype)
    shared = trained(connect(2, transport="shm"), f"{name}-shared", dtype=dtype)
    for key, value in sent.items():
        np.testing.assert_array_equal(shared[key], value, err_msg=key)


def test_memory_is_shared_for_as_long_as_a_worker_is_there(
    connect: Connect, fleets: Callable[[int], stepd.LocalFleet], name: str
) -> None:
    pids = [shard.pid for shard in fleets(2).shards]
    until(lambda: not any(map(shared_by, pids)), "an earlier test still shares")
    run = connect(2, transport="shm").create_run(name, random(0), optimizer=stepd.SGD(0.1))
    with run.join():
        until(lambda: [shared_by(pid) for pid in pids] == [1, 1], "nothing is shared")
    until(lambda: not any(map(shared_by, pids)), "still shared after the worker has left")


def test_gradients_that_are_computed_where_they_are_shared(connect: Connect, name: str) -> None:
    """Steps and pushes; what the user does to the arrays after a push is no part of it."""
    client = connect(2, transport="shm")
    expected = trained(client, f"{name}-expected", steps=4)
    run = client.create_run(name, random(0), optimizer=stepd.AdamW(0.01), clip=stepd.ClipNorm(1.0))
    with run.join() as worker:
        lent = worker.gradient_buffers()
        assert {key: (array.shape, array.dtype) for key, array in lent.items()} == {
            key: (array.shape, array.dtype) for key, array in random(0).items()
        }
        for step in range(4):
            for key, value in random(step + 1).items():
                lent[key][...] = value
            if step % 2:
                worker.step(lent)
            else:
                assert worker.push(lent).status == "accepted"
                for array in lent.values():
                    array[...] = np.nan
        for key, value in worker.pull().items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_where_nothing_is_shared_the_arrays_are_as_good_as_any(connect: Connect, name: str) -> None:
    run = connect(2, transport="grpc").create_run(name, random(0), optimizer=stepd.SGD(1.0))
    with run.join() as worker:
        lent = worker.gradient_buffers()
        for key, value in random(0).items():
            lent[key][...] = value
        for key, value in worker.step(lent).params.items():
            np.testing.assert_array_equal(value, np.zeros_like(value), err_msg=key)


def test_what_cannot_be_shared_is_an_error_only_if_it_must_be(
    connect: Connect, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepd.sharing.can_share", lambda: False)
    run = connect(2, transport="shm").create_run(name, random(0), optimizer=stepd.SGD(0.1))
    with pytest.raises(stepd.FailedPrecondition, match=r"shard \d and this worker cannot share memory") as caught:
        run.join()
    assert caught.value.reason == "TRANSPORT_UNAVAILABLE"
    assert run.info().workers == []
    with connect(2).run(name).join() as worker:
        assert worker.step(random(1)).step == 1


def test_who_says_nothing_shares_with_whom_it_can(
    connect: Connect, fleets: Callable[[int], stepd.LocalFleet], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = [shard.pid for shard in fleets(2).shards]
    until(lambda: not any(map(shared_by, pids)), "an earlier test still shares")
    run = connect(2).create_run(name, random(0), optimizer=stepd.SGD(0.1))
    with run.join() as worker:
        until(lambda: [shared_by(pid) for pid in pids] == [1, 1], "nothing is shared")
        worker.step(random(1))
    until(lambda: not any(map(shared_by, pids)), "still shared after the worker has left")
    # One of the shards cannot see into this process.
    agree = Sharing._agree

    async def far_from_the_first(self: Sharing, shard: int, plan: Any, memory: Any, call: Any) -> Any:
        if shard == 0:
            raise ValueError("another host")
        return await agree(self, shard, plan, memory, call)

    monkeypatch.setattr(Sharing, "_agree", far_from_the_first)
    with run.join() as worker:
        until(lambda: [shared_by(pid) for pid in pids] == [0, 1], "shared with the wrong one")
        assert worker.step(random(2)).step == 2
        assert [shared_by(pid) for pid in pids] == [0, 1]


def test_a_group_that_is_added_is_shared_as_well(connect: Connect, name: str) -> None:
    run = connect(2, transport="shm").create_run(name, random(0), optimizer=stepd.SGD(1.0))
    new = np.ones((500, 300), np.float32)
    with run.join() as worker:
        worker.step(random(1))
        run.add_param_group(stepd.ParamGroup({"new": new}))
        worker.step(random(1) | {"new": new})
        lent = worker.gradient_buffers()
        lent["new"][...] = 2
        result = worker.step({"new": lent["new"]})
    np.testing.assert_array_equal(result.params["new"], np.full_like(new, -2))


def work_for_ever(target: str, name: str, ready: Any) -> None:
    with stepd.connect(target, transport="shm") as client, client.run(name).join(lease=1.0) as worker:
        worker.step(random(1))
        ready.set()
        while True:
            worker.step(random(1))


def test_a_worker_that_dies_leaves_nothing_behind(
    connect: Connect, fleets: Callable[[int], stepd.LocalFleet], name: str
) -> None:
    fleet, context = fleets(2), multiprocessing.get_context("spawn")
    until(lambda: not any(shared_by(shard.pid) for shard in fleet.shards), "an earlier test still shares")
    run = connect(2).create_run(name, random(0), optimizer=stepd.SGD(0.1))
    ready = context.Event()
    process = context.Process(target=work_for_ever, args=(fleet.target, name, ready))
    process.start()
    try:
        assert ready.wait(PATIENCE_S)
        assert [shared_by(shard.pid) for shard in fleet.shards] == [1, 1]
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    until(lambda: not any(shared_by(shard.pid) for shard in fleet.shards), "its memory is still mapped")
    with run.join() as worker:
        assert worker.step(random(2)).step > 0


def test_a_shard_that_is_started_again_shares_again(name: str) -> None:
    """Meanwhile everything is sent; no step is lost or counted twice."""
    with stepd.local(2) as fleet, stepd.connect(fleet.target, transport="shm") as client:
        expected = trained(client, f"{name}-expected", steps=30)
        run = client.create_run(name, random(0), optimizer=stepd.AdamW(0.01), clip=stepd.ClipNorm(1.0))
        old = fleet.shards[0].pid
        with run.join() as worker:
            result = worker.step(random(1))
            for step in range(1, 30):
                if step == 5:
                    os.kill(old, signal.SIGKILL)
                result = worker.step(random(step + 1))
                assert result.step == step + 1
                if step == 20:
                    until(lambda: fleet.shards[0].pid != old, "the shard is not back")
                    # Tried again with the next use, but not more often than once a second.
                    until(lambda: worker.pull() is not None and shared_by(fleet.shards[0].pid) == 1, "not shared again")
        for key, value in result.params.items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)


# --- Parameters that stay where a shard has them -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_views_show_what_copies_hold(connect: Connect, name: str, dtype: str) -> None:
    """Of two shards, one tensor on both; what cannot stay in place is copied. Nobody can write to any of it."""
    client = connect(2, transport="shm")
    expected = trained(client, f"{name}-copied", dtype=dtype)
    run = client.create_run(name, random(0, dtype), optimizer=stepd.AdamW(0.01), clip=stepd.ClipNorm(1.0))
    with run.join() as worker:
        found, before = {}, {}
        for step in range(4):
            before, found = found, worker.step(random(step + 1, dtype), view=True).params
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
            assert not found[key].flags.writeable
        # Both steps show the same place.
        assert np.shares_memory(found["b"], before["b"]) == (dtype == "float32")
        assert not np.shares_memory(found["w"], before["w"])
        copied = worker.step(random(9, dtype)).params
        assert copied["b"].flags.writeable
        assert not np.shares_memory(copied["b"], found["b"])


def test_a_gradient_of_a_view_that_was_written_over_is_not_sent(connect: Connect, name: str) -> None:
    """The owner has let rounds be closed without everybody meanwhile."""
    client = connect(1, transport="shm")
    run = client.create_run(name, random(0), optimizer=stepd.SGD(0.1))
    with run.join() as worker, connect(1, transport="shm").run(name).join() as other:
        results = both(lambda: worker.step(random(1), view=True), lambda: other.step(random(1)))
        assert [result.receipt.status for result in results] == ["accepted"] * 2
        seen = results[0].params["w"]
        run.update(sync=stepd.Sync(quorum=1))
        until(lambda: other.step(random(2)).step > 1 and not np.array_equal(seen, results[1].params["w"]), "no step")
        result = worker.step(random(3), view=True)
        assert result.receipt.status == "stale"
        np.testing.assert_array_equal(result.params["w"], worker.pull()["w"])
        # Rounds do not wait for this worker, and so it is given copies.
        assert not np.shares_memory(worker.step(random(4), view=True).params["w"], seen)


def test_who_takes_turns_is_given_copies(connect: Connect, name: str) -> None:
    run = connect(1, transport="shm").create_run(name, random(0), optimizer=stepd.SGD(0.1), sync=stepd.Async())
    with run.join() as worker:
        first, second = (worker.step(random(step), view=True).params["w"] for step in range(2))
        assert not np.shares_memory(first, second)
        assert (first != second).any()


def both(*calls: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor() as pool:
        return [future.result(PATIENCE_S) for future in [pool.submit(call) for call in calls]]
