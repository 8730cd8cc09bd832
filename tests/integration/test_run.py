"""What can be asked of a run and changed on it, against real servers."""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import stepd
from tests.integration.training import at_once
from tests.patience import PATIENCE_S

Connect = Callable[..., stepd.Client]

F4 = np.float32


def small(**more: Any) -> dict[str, Any]:
    return {"params": {"w": np.zeros(4, F4)}, "optimizer": stepd.SGD(lr=1.0), **more}


ONES = {"w": np.ones(4, F4)}


def test_info_says_what_the_run_is(client: stepd.Client, name: str) -> None:
    schedule, clip = stepd.Linear(total_steps=10), stepd.ClipNorm(1.0)
    sync = stepd.Sync(workers=1, deterministic=True)
    run = client.create_run(name, **small(schedule=schedule, clip=clip, sync=sync))
    info = run.info()
    assert (info.name, info.status, info.step, info.lr) == (name, "waiting", 0, [1.0])
    assert (info.optimizer, info.schedule, info.clip, info.sync) == (stepd.SGD(lr=1.0), schedule, clip, sync)
    assert (info.parameters, info.elements) == (1, 4)
    with run.join(name="ann") as worker:
        worker.step(ONES)
        info = run.info()
        assert (info.status, info.step, info.lr) == ("training", 1, [0.9])
        assert [w.id for w in info.workers] == ["ann"]
        assert info.last_norm == 2.0
    assert run.step_count == 1
    assert name in [each.name for each in client.runs()]
    assert client.run(name).info().step == 1
    assert [shard.ready for shard in client.fleet().shards] == [True] * 3


def test_a_rate_that_is_set_holds_from_the_next_step(client: stepd.Client, name: str) -> None:
    groups = [
        stepd.ParamGroup({"a": np.zeros(2, F4)}),
        stepd.ParamGroup({"b": np.zeros(2, F4)}, lr=0.5),
    ]
    run = client.create_run(name, groups, optimizer=stepd.SGD(lr=1.0))
    grads = {"a": np.ones(2, F4), "b": np.ones(2, F4)}
    with run.join() as worker:
        assert run.get_lr() == [1.0, 0.5]
        run.set_lr(0.25, group=1)
        assert run.get_lr() == [1.0, 0.25]
        result = worker.step(grads)
        assert result.lr == [1.0, 0.25]
        assert result.params["b"][0] == -0.25
        run.set_lr(2.0)
        assert worker.step(grads).lr == [2.0, 2.0]
        with pytest.raises(stepd.InvalidArgument, match="group"):
            run.set_lr(1.0, group=7)
        with pytest.raises(stepd.InvalidArgument, match="lr must be a finite number, got nan"):
            run.set_lr(float("nan"))


def test_policies_can_be_changed_on_a_live_run(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, **small())
    with run.join() as worker:
        assert worker.step(ONES).clip_scale == 1.0
        run.update(clip=stepd.ClipNorm(0.5))
        assert worker.step(ONES).clip_scale == pytest.approx(0.25, rel=1e-5)
        assert run.info().clip == stepd.ClipNorm(0.5)
        run.update(clip=None)
        assert worker.step(ONES).clip_scale == 1.0
        assert run.info().clip is None
        run.update(schedule=stepd.Warmup(10), sync=stepd.Sync(workers=1, reduce="sum"))
        assert worker.step(ONES).lr == [pytest.approx(4 / 10)]
        assert run.info().sync == stepd.Sync(workers=1, reduce="sum")
        run.update(schedule=None)
        assert worker.step(ONES).lr == [1.0]
        run.update()


def test_watching_gives_an_event_for_each_step(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, **small())
    with run.watch() as watch, run.join(name="ann") as worker:
        worker.step(ONES)
        worker.step({"w": np.array([1, np.nan, 1, 1], F4)})
        worker.step(ONES)
        events = [next(watch) for _ in range(3)]
    assert [(e.step, e.round, e.outcome, e.workers) for e in events] == [
        (1, 0, "applied", 1),
        (1, 1, "skipped", 1),
        (2, 2, "applied", 1),
    ]
    assert (events[0].lr, events[0].grad_norm, events[0].clip_scale) == ([1.0], 2.0, 1.0)
    assert events[1].nonfinite == ["ann"]
    assert abs(events[0].at - time.time()) < 60
    with pytest.raises(StopIteration):
        next(watch)


def test_reported_metrics_are_seen_within_moments(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, **small())
    with run.join() as worker:
        worker.report(loss=0.5, accuracy=np.float32(0.25))
        worker.report(loss=0.125)
        deadline = time.monotonic() + PATIENCE_S
        while run.info().workers[0].metrics.get("loss") != 0.125 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert run.info().workers[0].metrics == {"loss": 0.125, "accuracy": 0.25}
        with run.watch() as watch:
            worker.step(ONES)
            assert next(watch).metrics == {"loss": 0.125, "accuracy": 0.25}
        with pytest.raises(stepd.InvalidArgument, match="loss must be a number, got 'low'"):
            worker.report(loss="low")


def test_the_end_of_a_watched_run_ends_the_watch(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, **small())
    watch = run.watch()
    deleting = threading.Timer(0.3, run.delete)
    deleting.start()
    with pytest.raises(stepd.NotFound, match="was deleted"):
        next(watch)
    deleting.join()


def test_a_deleted_run_is_gone_and_its_workers_are_told(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, **small(sync=stepd.Sync(workers=2)))
    worker = run.join()
    deleting = threading.Timer(0.3, run.delete)
    deleting.start()
    with pytest.raises(stepd.NotFound) as caught:
        worker.step(ONES)
    deleting.join()
    assert caught.value.reason == "RUN_NOT_FOUND"
    for call in (run.info, run.pull, run.delete, run.join, lambda: client.run(name)):
        with pytest.raises(stepd.NotFound):
            call()
    worker.leave()
    client.create_run(name, **small()).delete()


def test_export_writes_a_safetensors_file_under_the_parameters_own_names(
    client: stepd.Client, name: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "layers/0.weight": np.asfortranarray(np.arange(6, dtype=F4).reshape(2, 3)),
        "scalar": np.array(2.0, F4),
        "empty": np.zeros((0, 3), F4),
        "half": np.ones(3, np.float16),
    }
    run = client.create_run(name, given, optimizer=stepd.SGD(lr=1.0))
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"an older file")
    run.export(path)
    loaded = load_file(path)
    assert set(loaded) == set(given)
    for key, array in given.items():
        assert (loaded[key].dtype, loaded[key].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded[key], array)
    assert list(tmp_path.iterdir()) == [path], "nothing half-written is left"
    with pytest.raises(stepd.InvalidArgument, match="needs the folder"):
        run.export(tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(stepd.InvalidArgument, match="is a folder"):
        run.export(tmp_path)


def test_export_keeps_bfloat16(client: stepd.Client, name: str, tmp_path: Path) -> None:
    run = client.create_run(name, {"w": np.ones(3, ml_dtypes.bfloat16)}, optimizer=stepd.SGD(lr=1.0))
    run.export(tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert (header["w"]["dtype"], header["w"]["shape"]) == ("BF16", [3])
    assert header["__metadata__"] == {"run": name, "step": "0"}
    assert content[8 + size :] == np.ones(3, ml_dtypes.bfloat16).tobytes()


def test_an_observer_reads_one_version_while_workers_train(connect: Connect, name: str) -> None:
    """Every element of every shard has the same number of steps behind it."""
    size = 400_000
    client = connect(3)
    run = client.create_run(name, {"a": np.zeros(size, F4), "b": np.zeros(size, F4)}, optimizer=stepd.SGD(lr=1.0))
    grads = {"a": np.ones(size, F4), "b": np.ones(size, F4)}
    done = threading.Event()

    def work(index: int) -> int:
        if index == 0:
            with run.join() as worker:
                steps = 0
                while not done.is_set():
                    steps = worker.step(grads).step
                return steps
        try:
            seen: set[float] = set()
            while len(seen) < 4:
                params = run.pull()
                values = {float(v) for array in params.values() for v in (array.min(), array.max())}
                assert len(values) == 1, f"versions are mixed: {sorted(values)}"
                seen |= values
            return len(seen)
        finally:
            done.set()

    steps, versions = at_once(work, 2)
    assert steps >= versions - 1


def test_two_runs_train_at_once_without_touching_each_other(connect: Connect, name: str) -> None:
    client = connect(3)

    def work(index: int) -> Any:
        params = {"w": np.full(100_000, index, F4)}
        with client.create_run(f"{name}-{index}", params, optimizer=stepd.SGD(lr=1.0)).join() as worker:
            for _ in range(10):
                worker.step({"w": np.full(100_000, index + 1, F4)})
            return worker.pull()["w"]

    for index, w in enumerate(at_once(work, 2)):
        assert (w == index - 10 * (index + 1)).all()


# --- exist_ok -------------------------------------------------------------------------------------------------------


def test_of_many_workers_one_creates_the_run_and_the_others_wait_for_it(connect: Connect, name: str) -> None:
    clients = [connect(3) for _ in range(6)]
    barrier = threading.Barrier(6)

    def work(index: int) -> float:
        barrier.wait()
        params = {"w": np.full(500_000, index, F4), "b": np.full(7, index, F4)}
        run = clients[index].create_run(name, params, optimizer=stepd.SGD(lr=1.0), exist_ok=True)
        pulled = run.pull()
        (value,) = set(np.unique(pulled["w"])) | set(np.unique(pulled["b"]))
        return float(value)

    assert len(set(at_once(work, 6))) == 1, "everybody has the parameters of the one who created it"


def test_a_run_that_exists_is_found_only_with_the_same_parameters(client: stepd.Client, name: str) -> None:
    client.create_run(name, {"a": np.zeros((2, 3), F4), "b": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0))
    with pytest.raises(stepd.AlreadyExists, match=name):
        client.create_run(name, {"a": np.zeros((2, 3), F4), "b": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0))
    other_order = {"b": np.ones(4, F4), "a": np.ones((2, 3), F4)}
    found = client.create_run(name, other_order, optimizer=stepd.SGD(lr=1.0), exist_ok=True)
    assert not found.pull()["a"].any()
    for params, difference in (
        (
            {"a": np.zeros((3, 2), F4), "b": np.zeros(4, F4)},
            r"'a' is float32 of shape \(2, 3\), and float32 of shape \(3",
        ),
        ({"a": np.zeros((2, 3), F4), "b": np.zeros(4)}, "'b' is float32 of shape .*, and float64 of"),
        ({"a": np.zeros((2, 3), F4)}, r"'b' is float32 of shape \(4,\), and not there here"),
        ({"a": np.zeros((2, 3), F4), "b": np.zeros(4, F4), "c": np.zeros(1, F4)}, "'c' is not there, and float32"),
    ):
        with pytest.raises(stepd.FailedPrecondition, match=difference) as caught:
            client.create_run(name, params, optimizer=stepd.SGD(lr=1.0), exist_ok=True)
        assert caught.value.reason == "RUN_DIFFERS"
