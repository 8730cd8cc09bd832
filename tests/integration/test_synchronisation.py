"""Quorums, asynchronous runs and bounded staleness: who waits for whom, what becomes of every contribution."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest

import stepd
from stepd.info import CONTRIBUTIONS
from tests.integration.training import at_once
from tests.patience import PATIENCE_S

Connect = Callable[..., stepd.Client]

F4 = np.float32
SIZE = 100_000  # on every shard more than a block


def zeros() -> dict[str, np.ndarray]:
    return {"w": np.zeros(SIZE, F4), "b": np.zeros(3, F4)}


def grads(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(SIZE, value, F4), "b": np.full(3, value, F4)}


def value(params: dict[str, np.ndarray]) -> float:
    """The one value that all elements have: of one version, whichever shards they lie on."""
    values = {float(x) for array in params.values() for x in (array.min(), array.max())}
    assert len(values) == 1, f"of several versions: {values}"
    return values.pop()


@contextmanager
def workers(run: stepd.Run, count: int, **options: Any) -> Iterator[list[stepd.Worker]]:
    with ExitStack() as stack:
        yield [stack.enter_context(run.join(rank, **options)) for rank in range(count)]


def later(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Do something in another thread; the thread, and where its result goes."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    return thread, results


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


# --- Quorum -----------------------------------------------------------------------------------------------------------


def test_a_quorum_goes_on_without_the_slow_who_is_told_and_goes_on(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(quorum=2))
    with workers(run, 3) as (a, b, c):
        old = c.pull()
        for step in (1, 2):
            for result in at_once(lambda rank: (a, b)[rank].step(grads(1 + rank)), 2):
                assert (result.step, result.receipt.status) == (step, "accepted")
        assert value(old) == 0
        result = c.step(grads(1000))
        assert result.receipt.status == "late"
        assert run.info().workers[2].contributions == {**dict.fromkeys(CONTRIBUTIONS, 0), "late": 2}
        # It has the newest parameters and takes part again.
        assert (result.step, value(result.params)) == (2, -3)
        results = at_once(lambda rank: (a, b, c)[rank].step(grads(2)), 3)
        assert {r.receipt.status for r in results} <= {"accepted", "late"}
        assert sum(r.receipt.status == "accepted" for r in results) >= 2
        assert value(run.pull()) == -5


def test_whoever_comes_within_the_grace_is_in(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(3, quorum=1, grace=30.0))
    with workers(run, 3) as (a, b, c):
        thread, results = later(lambda: a.step(grads(1)))
        assert b.push(grads(2)).status == "accepted"
        assert c.push(grads(6)).status == "accepted"
        thread.join(PATIENCE_S)
        (result,) = results
        assert value(result.params) == -3


def test_a_quorum_does_not_wait_for_the_dead(client: stepd.Client, name: str) -> None:
    """Nor for its lease."""
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=3, quorum=2))
    with workers(run, 3, lease=60.0) as (a, b, _):
        began = time.monotonic()
        for step in (1, 2, 3):
            assert {r.step for r in at_once(lambda rank: (a, b)[rank].step(grads(1)), 2)} == {step}
        assert time.monotonic() - began < 60.0


def test_the_mean_and_the_weighted_mean_are_of_those_who_are_in(client: stepd.Client, name: str) -> None:
    sync = stepd.Sync(quorum=2, reduce="weighted")
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), clip=stepd.ClipNorm(1e9), sync=sync)
    with workers(run, 3) as (a, b, c):
        results = at_once(lambda rank: (a, b)[rank].step(grads(1 + rank), weight=1 + 2 * rank), 2)
        assert value(results[0].params) == -1.75
        assert results[0].grad_norm == pytest.approx(1.75 * np.sqrt(SIZE + 3), rel=1e-6)
        assert c.step(grads(8), weight=100.0).receipt.status == "late"


# --- In turn ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_every_contribution_of_an_asynchronous_run_is_a_step(connect: Connect, name: str, shards: int) -> None:
    """However many there are at once; every worker sees its own steps in order, and parameters of one version."""
    count, steps = 4, 12
    run = connect(shards).create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Async())

    def work(rank: int) -> list[stepd.StepResult]:
        with connect(shards).run(name).join(rank) as worker:
            assert value(worker.pull()) <= 0
            return [worker.step(grads(1)) for _ in range(steps)]

    results = at_once(work, count)
    for one in results:
        assert [r.receipt.status for r in one] == ["accepted"] * steps
        assert [r.step for r in one] == sorted({r.step for r in one})
        for result in one:
            assert value(result.params) == -result.step
    rounds = [r.receipt.round for one in results for r in one]
    assert sorted(rounds) == list(range(count * steps))
    assert (run.step_count, value(run.pull())) == (count * steps, -count * steps)


def test_nobody_waits_for_who_is_slow_stopped_or_dead(connect: Connect, name: str) -> None:
    run = connect(3).create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Async())
    script = (
        "import sys, numpy as np, stepd\n"
        "with stepd.connect(sys.argv[1]).run(sys.argv[2]).join(9, lease=2.0) as worker:\n"
        "    while True:\n"
        "        print(worker.step({'w': np.full(100_000, 0, np.float32)}).step, flush=True)\n"
    )
    command = [sys.executable, "-c", script, connect(3).target, name]
    with run.join(0) as worker, subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        os.kill(other.pid, signal.SIGSTOP)
        began = time.monotonic()
        for _ in range(5):
            assert worker.step(grads(1)).receipt.status == "accepted"
        # If it was stopped while it sent, its lease has to end first; not so in each step.
        assert time.monotonic() - began < 5 * 2.0
        other.kill()
        for _ in range(5):
            assert worker.step(grads(1)).receipt.status == "accepted"
    assert value(run.pull()) == -10


def test_a_step_that_was_interrupted_holds_nobody_up_and_counts_once(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.BoundedStaleness(2, 1))
    with workers(run, 2) as (a, b):
        assert a.step(grads(1)).step == 1
        threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            a.step(grads(10))  # b has yet to have its turn
        assert b.step(grads(100)).step == 2
        # What was on its way arrives with the next call, and before it.
        assert a.pull()["w"][0] == -111
        assert run.step_count == 3


def test_a_stale_contribution_changes_nothing_and_its_worker_goes_on(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Async(max_staleness=1))
    with workers(run, 2) as (a, b):
        b.pull()
        a.step(grads(1))
        assert b.push(grads(1)).status == "accepted"  # of the version before
        assert a.step(grads(1)).step == 3
        result = b.step(grads(1000))  # it has not pulled since
        assert result.receipt.status == "stale"
        assert (result.step, value(result.params)) == (3, -3)
        counts = run.info().workers[1].contributions
        assert (counts["accepted"], counts["stale"]) == (1, 1)
        assert b.step(grads(1)).receipt.status == "accepted"
        a.accumulate(grads(1))  # of this version, whatever is pulled before the step
        b.step(grads(1))
        b.step(grads(1))
        a.pull()
        assert a.step(grads(1)).receipt.status == "stale"
        assert b.push(grads(1)).status == "accepted"
        assert value(b.pull()) == -7


def test_damping_scales_by_staleness_before_the_norm_is_taken(client: stepd.Client, name: str) -> None:
    sync = stepd.Async(damping="inverse")
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=sync)
    with workers(run, 2) as (a, b):
        assert a.step(grads(1)).step == 1
        a.step(grads(1))
        result = b.step(grads(3))  # two steps behind: a third of it
        assert value(result.params) == -3
        assert result.grad_norm == pytest.approx(np.sqrt(SIZE + 3), rel=1e-6)


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_nobody_runs_ahead_of_the_slowest(connect: Connect, name: str, staleness: int) -> None:
    count, steps = 3, 8
    sync, done = stepd.BoundedStaleness(count, staleness), threading.Barrier(count)
    run = connect(3).create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=sync)

    def work(rank: int) -> list[int]:
        with connect(3).run(name).join(rank) as worker:
            rounds = []
            for _ in range(steps):
                time.sleep(0.03 * rank)
                rounds.append(worker.step(grads(1)).receipt.round)
            done.wait(PATIENCE_S)  # a place that is left is one that others wait for
            return rounds

    rounds = at_once(work, count)
    order = sorted((round_, rank) for rank, own in enumerate(rounds) for round_ in own)
    had = [0] * count
    ahead = []
    for _, rank in order:
        had[rank] += 1
        ahead.append(had[rank] - min(had))
    assert max(ahead) <= max(staleness, 1)
    assert value(run.pull()) == -count * steps


def test_the_place_of_the_slowest_that_died_is_waited_for(client: stepd.Client, name: str) -> None:
    """As in a synchronous run of exactly so many. Whoever takes it has had as many turns as the slowest."""
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.BoundedStaleness(2, 2))
    with run.join(0) as a:
        b = run.join(1, lease=1.0)
        a.step(grads(1))
        a.step(grads(1))
        thread, results = later(lambda: a.step(grads(1)))
        soon(lambda: [w.rank for w in run.info().workers if w.awaited is not None] == [1])
        b._membership.abandon()
        soon(lambda: run.info().status == "waiting")
        assert [place.rank for place in run.info().missing] == [1]
        assert results == []
        with run.join(1) as c:
            thread.join(PATIENCE_S)
            assert results[0].step == 3
            assert c.step(grads(1)).step == 4


# --- What acts in all of them -----------------------------------------------------------------------------------------


def test_clips_schedules_and_averages_act_on_every_step(client: stepd.Client, name: str) -> None:
    run = client.create_run(
        name,
        zeros(),
        optimizer=stepd.SGD(lr=1.0),
        schedule=stepd.Linear(total_steps=4),
        clip=stepd.Clip(value=2.0),
        average=stepd.SWA(1, 1),
        sync=stepd.Async(),
    )
    with workers(run, 2) as (a, b):
        results = [(a, b)[i % 2].step(grads(5)) for i in range(3)]
        assert [r.lr for r in results] == [[1.0], [0.75], [0.5]]
        assert [value(r.params) for r in results] == [-2.0, -3.5, -4.5]
        assert value(run.pull(averaged=True)) == pytest.approx((-2.0 - 3.5 - 4.5) / 3)
        run.update(clip=stepd.ClipNorm(1.0))
        result = a.step(grads(5))
        assert result.clip_scale == pytest.approx(1 / (5 * np.sqrt(SIZE + 3)), rel=1e-5)


def test_layerwise_rules_measure_every_step(client: stepd.Client, name: str) -> None:
    ones = {"w": np.ones(SIZE, F4)}
    rule = stepd.LARS(lr=1.0, momentum=0)
    one = client.create_run(f"{name}-sync", ones, optimizer=rule)
    other = client.create_run(f"{name}-async", ones, optimizer=rule, sync=stepd.Async())
    with one.join() as a, other.join() as b:
        for _ in range(3):
            np.testing.assert_array_equal(a.step(ones).params["w"], b.step(ones).params["w"])


@pytest.mark.parametrize("sync", [stepd.Async(), stepd.Sync(quorum=1), stepd.BoundedStaleness(2, 2)], ids=repr)
def test_values_that_are_not_finite_are_skipped_left_out_or_an_error(
    client: stepd.Client, name: str, sync: stepd.Sync
) -> None:
    """Whatever the policy, with the worker named; and the run goes on."""
    poison = grads(1)
    poison["w"][SIZE // 2] = np.nan
    for policy in ("skip", "quarantine", "error"):
        run = client.create_run(
            f"{name}-{policy}"[:120], zeros(), optimizer=stepd.SGD(lr=1.0), sync=sync, on_nonfinite=policy
        )
        with run.watch() as watch, workers(run, 2) as (a, _):
            if policy == "error":
                with pytest.raises(stepd.NonFiniteGradient, match="rank 0") as caught:
                    a.step(poison)
                assert caught.value.details["parameters"] == ["w"]
            else:
                result = a.step(poison)
                assert result.skipped
                assert result.receipt.status == ("quarantined" if policy == "quarantine" else "accepted")
            assert next(watch).nonfinite == [a.id]
            assert a.step(grads(1)).step == 1
            assert value(run.pull()) == -1


def test_groups_and_states_come_to_a_run_that_takes_turns(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0, momentum=0.5), sync=stepd.Async())
    with workers(run, 2) as (a, b):
        a.step(grads(1))
        state = run.state_dict()
        run.add_param_group(stepd.ParamGroup({"more": np.zeros(5, F4)}, lr=2.0))
        wide = {**grads(1), "more": np.ones(5, F4)}
        assert (a.step(wide).params["more"] == -2).all()
        state = run.state_dict()
        assert b.step(wide).step == 3
        before = run.pull()
        run.load_state_dict(state)
        result = a.step({"w": np.zeros(SIZE, F4)})
        np.testing.assert_allclose(result.params["w"], before["w"] - 0.5 * 1.5, rtol=1e-6)


# --- Changes ----------------------------------------------------------------------------------------------------------


def test_the_policy_changes_under_workers_that_step(connect: Connect, name: str) -> None:
    """Every contribution that was accepted counts once, under whichever policy it came to be taken."""
    count = 3
    run = connect(3).create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(reduce="sum"))
    stop = threading.Event()

    def work(rank: int) -> int:
        accepted = 0
        with connect(3, retry_for=20.0).run(name).join(rank) as worker:
            while not stop.is_set():
                accepted += worker.step(grads(1)).receipt.status == "accepted"
        return accepted

    def change() -> None:
        for sync in (
            stepd.Async(),
            stepd.Sync(quorum=2, reduce="sum"),
            stepd.BoundedStaleness(count, 1),
            stepd.Sync(reduce="sum"),
            stepd.Async(max_staleness=4),
            None,
        ):
            run.update(sync=sync or stepd.Sync(reduce="sum"))
            before = run.step_count
            soon(lambda now=before: run.step_count > now + 3)

    def either(rank: int) -> int:
        if rank < count:
            return work(rank)
        try:
            soon(lambda: len(run.info().workers) == count)
            change()
        finally:
            stop.set()
        return 0

    accepted = sum(at_once(either, count + 1))
    assert value(run.pull()) == -accepted


def test_a_policy_that_the_members_do_not_fit_is_refused(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, zeros(), optimizer=stepd.SGD(lr=1.0), sync=stepd.Async())
    with workers(run, 3):
        with pytest.raises(stepd.FailedPrecondition, match="cannot take exactly 2 workers: 3 have joined"):
            run.update(sync=stepd.BoundedStaleness(2, 1))
        assert run.info().sync == stepd.Async()
