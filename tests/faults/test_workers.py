"""Workers that die, stop and come back: who goes on, when, and what is counted."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stepd
from tests.faults.proxy import Way
from tests.faults.roles import Fleet
from tests.faults.trainees import Trainee, Trainees, check_order, counted, without_a_lost_one
from tests.integration.servers import eventually
from tests.patience import PATIENCE_S

LEASE_S = 4.0
# A third of it is on each shard: enough for a stream to be in the middle of.
ELEMENTS = 400_000
MIDDLE_BYTES = 300_000
FEW_BYTES = 300


def create(client: stepd.Client, name: str, workers: int | None = None) -> stepd.Run:
    return client.create_run(
        name,
        {"w": np.zeros(ELEMENTS, np.float32)},
        optimizer=stepd.SGD(lr=1.0),
        sync=stepd.Sync(workers=workers, reduce="sum"),
    )


def without(worker: Trainee, victim: Trainee, since: float) -> list[dict[str, Any]]:
    """Results of a worker, since a moment, in which another was not counted."""
    who = counted(worker.steps)
    return [result for result in worker.steps[1:] if result["at"] > since and victim.rank not in who[result["step"]]]


@pytest.mark.parametrize(
    ("how", "transport"),
    [
        pytest.param(signal.SIGKILL, "grpc", id="killed-grpc"),
        pytest.param(signal.SIGSTOP, "shm", id="stopped-shm"),
        pytest.param(signal.SIGKILL, "shm", id="killed-shm", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, "grpc", id="stopped-grpc", marks=pytest.mark.slow),
    ],
)
def test_the_others_go_on_within_the_lease(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path, how: signal.Signals, transport: str
) -> None:
    """One worker is lost in the middle of a push, another in the middle of a pull; stopped ones come back.

    Where memory is shared few bytes go by, and they are lost at any time.
    """
    create(client, name)
    with Trainees(tmp_path, fleet.target, name, lease=LEASE_S, gradient="digit", transport=transport) as trainees:
        others = trainees.start(0, 1)
        victims = trainees.start(2, 3)
        # How long a step takes here says how much more than the lease it may be.
        trainees.wait(lambda: all(len(w.steps) > 3 for w in trainees.workers), "all have begun")
        struck: dict[int, float] = {}
        for victim, shard, way in zip(victims, fleet.shards[1:], Way, strict=True):

            def strike(victim: Trainee = victim) -> None:
                victim.signal(how)
                struck[victim.rank] = time.monotonic()

            assert shard.proxy is not None
            shard.proxy.after(MIDDLE_BYTES if transport == "grpc" else FEW_BYTES, way, strike, of=victim.pid)
        gone = [(worker, victim) for worker in others for victim in victims]
        trainees.wait(
            lambda: all(v.rank in struck and without(w, v, struck[v.rank]) for w, v in gone), "the others go on"
        )
        for worker, victim in gone:
            after = without(worker, victim, struck[victim.rank])[0]["at"] - max(struck.values())
            before = [result for result in worker.steps if result["at"] < min(struck.values())]
            assert after < without_a_lost_one(LEASE_S, before)
        if how == signal.SIGSTOP:
            for victim in victims:
                victim.signal(signal.SIGCONT)
            trainees.await_steps(4, of=victims)
            trainees.finish()
            who = counted(others[0].steps)
            for victim in victims:
                seen = [result["step"] for result in victim.steps]
                assert seen == sorted(seen)
                for previous, result in pairwise(victim.steps):
                    if previous["step"] + 1 in who:
                        # One that was stopped while it read has a later version than the one it was counted in.
                        times = sum(
                            who[step].count(victim.rank) for step in range(previous["step"] + 1, result["step"] + 1)
                        )
                        assert times == (result["receipt"] == "accepted"), (victim.rank, previous, result, who)
        else:
            trainees.await_steps(2, of=others)
        for worker in others:
            check_order(worker.steps)
            who = counted(worker.steps)
            assert all(len(set(ranks)) == len(ranks) for ranks in who.values()), who
            both = max(other.steps[0]["step"] for other in others)
            assert all({0, 1} <= set(ranks) for step, ranks in who.items() if step >= both), who


def test_a_run_of_exactly_three_waits_or_says_who_is_missing(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path
) -> None:
    run = create(client, name, workers=3)
    with Trainees(tmp_path, fleet.target, name, lease=LEASE_S, gradient="digit") as trainees:
        (hasty,) = trainees.start(0, retry_for=1.0)
        patient, victim = trainees.start(2, 1, retry_for=PATIENCE_S)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        victim.signal(signal.SIGKILL)
        trainees.workers.remove(hasty)
        trainees.wait(lambda: hasty.ended == 3, "the hasty one gives up")
        (error,) = hasty.all("error")
        assert error["kind"] == "DeadlineExceeded"
        assert "rank 1" in error["message"]
        assert "rank 1" in str(run.info().problem)
        at = patient.step
        trainees.start(0, 1)
        trainees.await_steps(3, of=[patient])
        assert patient.step >= at + 3
        trainees.finish()
        check_order(patient.steps)
        who = counted(patient.steps, 0.0)
        assert all(ranks == [0, 1, 2] for step, ranks in who.items()), who


def test_a_stopped_coordinator_loses_nobody(fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path) -> None:
    """Its clock has gone on without it, and the workers have renewed all the time."""
    create(client, name, workers=2)
    with Trainees(tmp_path, fleet.target, name, lease=3.0, gradient="digit") as trainees:
        trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        fleet.coordinator.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        eventually(lambda: time.monotonic() > stopped + 5.0, "leases and more have passed")
        fleet.coordinator.signal(signal.SIGCONT)
        trainees.await_steps(3)
        trainees.finish()
        for worker in trainees.workers:
            check_order(worker.steps)
            assert all(ranks == [0, 1] for ranks in counted(worker.steps, 0.0).values())
