"""Groups of a run: what each may have of its own, and groups that are added while workers train."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepd
from tests.integration.one_process import Reference
from tests.integration.training import Arrays, at_once
from tests.patience import PATIENCE_S

Connect = Callable[..., stepd.Client]

LARGE = 200_001  # three and a bit of a block: on three shards it lies on each


def random(seed: int, dtype: Any = np.float32, **shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


OLD = {"w": (300, 400), "b": (7,)}
NEW = {"head": (LARGE,), "bias": (3, 1), "temperature": (), "empty": (0, 4)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_worker_holds_on_while_a_group_is_added(connect: Connect, name: str, shards: int, dtype: Any) -> None:
    """It trains, the owner adds a group, its next step brings the new parameters, and then they are trained, too."""
    old, new = random(0, dtype, **OLD), random(1, dtype, **NEW)
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    adam, sgd = stepd.AdamW(lr=1e-2), stepd.SGD(lr=0.5, momentum=0.9, weight_decay=0.01)
    there, added = Reference(adam, old), Reference(sgd, new)
    owner = connect(shards).create_run(name, old, optimizer=adam, sync=stepd.Sync(workers=1))
    with connect(shards).run(name).join() as worker:
        for seed in range(3):
            grads = random(10 + seed, dtype, **OLD)
            there.step(grads)
            assert worker.step(grads).params.keys() == old.keys()
        owner.add_param_group(stepd.ParamGroup(new, optimizer=stepd.SGD(lr=0.5), momentum=0.9, weight_decay=0.01))
        np.testing.assert_array_equal(owner.pull()["head"], new["head"])
        grads = random(20, dtype, **OLD)
        there.step(grads)
        result = worker.step(grads)  # it knows nothing yet
        assert list(result.params) == [*old, *new]
        assert (result.step, result.lr, result.receipt.status) == (4, [1e-2, 0.5], "accepted")
        for key, value in new.items():
            np.testing.assert_array_equal(result.params[key], value)
        for seed in range(5):
            grads = random(30 + seed, dtype, **OLD, **NEW)
            there.step({key: grads[key] for key in OLD})
            added.step({key: grads[key] for key in NEW})
            result = worker.step(grads)
        for key, value in (there.params | added.params).items():
            np.testing.assert_allclose(result.params[key], value, rtol=tolerance, atol=tolerance, err_msg=key)
        info = owner.info()
        assert (info.step, info.parameters, info.lr) == (9, 6, [1e-2, 0.5])
        assert result.grad_norm == pytest.approx(
            np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values())), rel=1e-12
        )
    owner.delete()


def test_a_round_under_way_starts_over_and_nobody_sends_again_by_hand(connect: Connect, name: str) -> None:
    """One worker waits in a step, the other comes after the change; a third has only pushed."""
    client = connect(3)
    run = client.create_run(name, {"w": np.zeros(5, np.float32)}, optimizer=stepd.SGD(lr=1.0))
    ones = {"w": np.ones(5, np.float32)}
    with run.join() as waiting, connect(3).run(name).join(lease=1.0) as pushing, connect(3).run(name).join() as late:
        results: list[stepd.StepResult] = []
        thread = threading.Thread(target=lambda: results.append(waiting.step(ones)))
        thread.start()
        assert pushing.push(ones).status == "accepted"
        run.add_param_group(stepd.ParamGroup({"v": np.full(3, 2.0, np.float32)}))
        results.append(late.step({"w": np.full(5, 4.0, np.float32)}))
        thread.join(PATIENCE_S)
        for params in (results[0].params, results[1].params, pushing.pull()):
            np.testing.assert_array_equal(params["w"], np.full(5, -2.0))
            np.testing.assert_array_equal(params["v"], np.full(3, 2.0))
    assert [result.step for result in results] == [1, 1]


def test_a_gradient_for_new_parameters_may_come_first(connect: Connect, name: str) -> None:
    """A worker that was told of them by other means need not pull before; names that nobody has stay unknown."""
    run = connect(3).create_run(name, {"w": np.zeros(2)}, optimizer=stepd.SGD(lr=1.0))
    with connect(3).run(name).join() as worker:
        run.add_param_group(stepd.ParamGroup({"v": np.zeros(3)}))
        worker.accumulate({"v": np.ones(3)})
        params = worker.step().params
        np.testing.assert_array_equal(params["v"], -np.ones(3))
        run.add_param_group(stepd.ParamGroup({"u": np.zeros(1)}))
        assert worker.pull(names=["u"]).keys() == {"u"}
        with pytest.raises(stepd.UnknownParameter, match="'x'"):
            worker.step({"x": np.ones(1)})


def test_a_run_of_whole_contributions_wants_the_new_ones_too(connect: Connect, name: str) -> None:
    run = connect(3).create_run(name, {"w": np.zeros(2)}, optimizer=stepd.SGD(lr=1.0), missing="error")
    with connect(3).run(name).join() as worker:
        worker.step({"w": np.ones(2)})
        run.add_param_group(stepd.ParamGroup({"v": np.zeros(3)}))
        with pytest.raises(stepd.MissingGradient, match="'v'"):
            worker.step({"w": np.ones(2)})
        result = worker.step({"w": np.ones(2), "v": np.ones(3)})
        assert result.step == 2
        np.testing.assert_array_equal(result.params["w"], np.full(2, -2.0))


@pytest.mark.parametrize(
    ("group", "kind", "message"),
    [
        (stepd.ParamGroup({"w": np.zeros(2, np.float32)}), stepd.OverlappingGroups, "'w' stands twice"),
        (stepd.ParamGroup({"v": np.zeros(2)}), stepd.DtypeMismatch, "'v'.* computes in float32"),
        (stepd.ParamGroup({"v": np.array([np.nan], np.float32)}), stepd.InvalidArgument, "'v'.* finite"),
        (stepd.ParamGroup({}), stepd.InvalidArgument, "at least one parameter"),
        (stepd.ParamGroup({"v": np.zeros(2, np.float32)}, beta=1), stepd.InvalidArgument, "beta"),
        ({"v": np.zeros(2, np.float32)}, stepd.InvalidArgument, "a ParamGroup"),
    ],
    ids=["overlap", "double", "nan", "empty", "field", "mapping"],
)
def test_what_cannot_be_added(client: stepd.Client, name: str, group: Any, kind: type[Exception], message: str) -> None:
    run = client.create_run(name, {"w": np.zeros(2, np.float32)}, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        with pytest.raises(kind, match=message):
            run.add_param_group(group)
        assert worker.step({"w": np.ones(2, np.float32)}).params.keys() == {"w"}
        run.add_param_group(stepd.ParamGroup({"v": np.zeros(2, np.float32)}))
        assert worker.pull().keys() == {"w", "v"}


def test_groups_that_are_added_at_once_come_one_after_another(connect: Connect, name: str) -> None:
    """While a worker trains; every group is there once, and ids are positions."""
    run = connect(3).create_run(name, {"w": np.zeros(2)}, optimizer=stepd.SGD(lr=1.0))
    stop = threading.Event()

    def train() -> int:
        step = 0
        with connect(3).run(name).join() as worker:
            while not stop.is_set():
                step = worker.step({key: np.ones_like(value) for key, value in worker.pull().items()}).step
        return step

    def work(index: int) -> int:
        if index == 0:
            return train()
        try:
            for i in range(3):
                group = {f"{index}.{i}": np.full(50_000 * index, float(i))}
                connect(3, retry_for=PATIENCE_S).run(name).add_param_group(stepd.ParamGroup(group, lr=0.0))
            done.append(index)
        finally:
            if len(done) == 2:
                stop.set()
        return 0

    done: list[int] = []
    steps, *_ = at_once(work, 3)
    params = run.pull()
    assert steps == run.step_count
    assert (params["w"] == -steps).all()
    assert sorted(list(params)[1:]) == [f"{index}.{i}" for index in (1, 2) for i in range(3)]
    for index in (1, 2):
        assert [key for key in params if key.startswith(str(index))] == [f"{index}.{i}" for i in range(3)]
        for i in range(3):
            np.testing.assert_array_equal(params[f"{index}.{i}"], np.full(50_000 * index, float(i)))


def test_a_group_without_an_optimizer_has_the_runs_own(client: stepd.Client, name: str) -> None:
    """As it was created: not another group's, and not what rates have been set to."""
    first = stepd.ParamGroup({"w": np.zeros(1)}, optimizer=stepd.AdamW(lr=0.5))
    run = client.create_run(name, [first], optimizer=stepd.SGD(lr=0.25), schedule=stepd.LinearFactor(0.5, 1.0, 4))
    run.set_lr(0.125)
    run.add_param_group(stepd.ParamGroup({"v": np.zeros(1)}))
    run.add_param_group(stepd.ParamGroup({"u": np.zeros(1)}, lr=3.0, schedule=stepd.Constant()))
    assert run.get_lr() == [0.125, 0.125, 3.0]
    with run.join() as worker:
        params = worker.step({key: np.ones(1) for key in "wvu"}).params
    assert (params["v"][0], params["u"][0]) == (-0.125, -3.0)
    assert run.get_lr()[1:] == [0.25 * 0.625, 3.0]
    run.set_lr(7.0, group=2)
    assert run.get_lr()[1:] == [0.25 * 0.625, 7.0]


def test_rules_with_numbers_of_their_own_keep_them_when_others_come(connect: Connect, name: str) -> None:
    """The table of scalars gets longer rows; who was there before goes on as if nothing had been."""
    shape = (70_000,)
    rules: list[stepd.rules.Rule] = [stepd.SGD(lr=0.1), stepd.NAdam(lr=0.01), stepd.ASGD(lr=0.1), stepd.SGD(lr=0.1)]
    groups = [random(i, np.float64, **{f"p{i}": shape}) for i in range(len(rules))]
    references = [Reference(rule, group) for rule, group in zip(rules, groups, strict=True)]
    run = connect(3).create_run(name, groups[0], optimizer=rules[0])
    with connect(3).run(name).join() as worker:
        for i in range(len(rules)):
            if i:
                run.add_param_group(stepd.ParamGroup(groups[i], optimizer=rules[i]))
            for seed in range(3):
                grads = random(100 + 10 * i + seed, np.float64, **{f"p{k}": shape for k in range(i + 1)})
                for k in range(i + 1):
                    references[k].step({f"p{k}": grads[f"p{k}"]})
                worker.step(grads)
        params = worker.pull()
    for k, reference in enumerate(references):
        np.testing.assert_allclose(params[f"p{k}"], reference.params[f"p{k}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("when", [pytest.param("after a step", marks=pytest.mark.slow), "at once"])
def test_servers_that_are_killed_find_the_extended_run(name: str, when: str) -> None:
    """Shards one after the other, and the coordinator."""
    adam = stepd.AdamW(lr=0.1)
    old, new = random(0, w=(70_000,)), random(1, v=(140_000,))
    reference = Reference(adam, old | new)
    with stepd.local(2) as fleet, stepd.connect(fleet.target, retry_for=PATIENCE_S) as client:
        run = client.create_run(name, old, optimizer=adam)
        run.add_param_group(stepd.ParamGroup(new))
        if when == "after a step":
            with run.join() as worker:
                grads = random(2, w=(70_000,), v=(140_000,))
                reference.step(grads)
                worker.step(grads)
        for pid in (fleet.shards[0].pid, fleet.shards[1].pid, fleet.coordinator.pid):
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE_S
            while pid in (fleet.coordinator.pid, *(shard.pid for shard in fleet.shards)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        again = client.run(name)
        with again.join() as worker:
            for seed in range(3):
                grads = random(10 + seed, w=(70_000,), v=(140_000,))
                reference.step(grads)
                worker.step(grads)
            params = worker.pull()
            again.add_param_group(stepd.ParamGroup({"u": np.zeros(3, np.float32)}))
            assert list(worker.pull()) == ["w", "v", "u"]
        for key, value in reference.params.items():
            np.testing.assert_allclose(params[key], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "delay", [pytest.param(0.0, marks=pytest.mark.slow), 0.02, pytest.param(0.1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("who", ["shard", "coordinator"])
def test_a_server_that_is_killed_while_a_group_is_added_does_not_spoil_it(name: str, who: str, delay: float) -> None:
    """At whatever moment: it is there in the end, whole and once, and the run goes on."""
    new = random(1, v=(2_000_000,))
    with stepd.local(2) as fleet, stepd.connect(fleet.target, retry_for=PATIENCE_S) as client:
        run = client.create_run(name, {"w": np.zeros(70_000, np.float32)}, optimizer=stepd.SGD(lr=1.0))
        victim = fleet.shards[1] if who == "shard" else fleet.coordinator
        killing = threading.Timer(delay, os.kill, (victim.pid, signal.SIGKILL))
        killing.start()
        run.add_param_group(stepd.ParamGroup(new))
        killing.join()
        np.testing.assert_array_equal(run.pull()["v"], new["v"])
        assert run.info().parameters == 2
        with client.run(name).join() as worker:
            params = worker.step({"w": np.ones(70_000, np.float32), "v": new["v"]}).params
        np.testing.assert_array_equal(params["v"], np.zeros(2_000_000))
        np.testing.assert_array_equal(params["w"], -np.ones(70_000))


def test_a_run_that_grew_has_the_same_bits_on_any_number_of_shards(connect: Connect, name: str) -> None:
    old, new = random(0, **OLD), random(1, **NEW)
    ends: list[tuple[list[float], Arrays]] = []
    for shards in (1, 3):
        run = connect(shards).create_run(name, old, optimizer=stepd.AdamW(lr=0.1), clip=stepd.ClipNorm(50.0))
        run.add_param_group(stepd.ParamGroup(new, lr=0.5, clip=stepd.ClipNorm(20.0)))
        with run.join() as worker:
            norms = [worker.step(random(2 + seed, **OLD, **NEW)).grad_norm for seed in range(3)]
        ends.append((norms, run.pull()))
    (norms, params), (others, again) = ends
    assert norms == others
    for key, value in params.items():
        assert value.tobytes() == again[key].tobytes(), key
