"""Servers that are killed in runs that do not wait for everybody: they go on, and nothing is counted twice or lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepd
from tests.faults.roles import Fleet
from tests.integration.servers import eventually
from tests.integration.training import at_once
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.timeout(300)

WORKERS = 3
KILLS = 3
# On every shard several blocks and chunks, so that a kill may be in the middle of them.
SIZE = 600_000
GRADIENT = {"w": np.ones(SIZE, np.float32)}

POLICIES = {
    "async": stepd.Async(),
    "damped": stepd.Async(max_staleness=1000, damping="inverse"),
    "bounded": stepd.BoundedStaleness(WORKERS, 2),
    "quorum": stepd.Sync(workers=WORKERS, quorum=2, reduce="sum"),
    "grace": stepd.Sync(quorum=2, grace=0.05, reduce="sum"),
}


IN_SHORT = [("async", "shards", "shm"), ("grace", "coordinator", "grpc")]
AT_LENGTH = [
    (policy, victims, transport)
    for policy, victims in [
        ("async", "shards"),
        ("async", "coordinator"),
        ("damped", "shards"),
        ("bounded", "coordinator"),
        ("quorum", "shards"),
        ("grace", "coordinator"),
    ]
    for transport in ("grpc", "shm")
    if (policy, victims, transport) not in IN_SHORT
]


@pytest.mark.parametrize(
    ("policy", "victims", "transport"),
    [*IN_SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in AT_LENGTH)],
)
def test_a_run_goes_on_over_kills_and_counts_once(
    start: Callable[..., Fleet], name: str, policy: str, victims: str, transport: str
) -> None:
    """With plain SGD at rate 1 and gradients of ones the parameters say how many were counted, unless they are damped:
    then every one of them has moved the run by one step."""
    fleet, rng = start(2), random.Random(f"{policy} {victims}")
    roles = fleet.shards if victims == "shards" else [fleet.coordinator]
    stop = threading.Event()
    with stepd.connect(fleet.target, timeout=5.0, retry_for=PATIENCE_S) as client:
        run = client.create_run(name, {"w": np.zeros(SIZE, np.float32)}, **_options(policy))

        def kill() -> list[stepd.StepResult]:
            try:
                for _ in range(KILLS):
                    before = run.step_count
                    eventually(lambda before=before: run.step_count > before + 1, "the run goes on")
                    stop.wait(rng.uniform(0, 0.2))
                    rng.choice(roles).kill()
                before = run.step_count
                eventually(lambda: run.step_count > before + WORKERS, "the run goes on after the last kill")
            finally:
                # Nobody is to wait for those who end first.
                run.update(sync=stepd.Async())
                stop.set()
            return []

        def work(index: int) -> list[stepd.StepResult]:
            return _train(fleet, name, index, transport, stop) if index < WORKERS else kill()

        *results, _ = at_once(work, WORKERS + 1)
        _check(policy, results, run)


def _options(policy: str) -> dict[str, Any]:
    return {"optimizer": stepd.SGD(lr=1.0), "sync": POLICIES[policy]}


def _train(fleet: Fleet, name: str, rank: int, transport: str, stop: threading.Event) -> list[stepd.StepResult]:
    with (
        stepd.connect(fleet.target, timeout=5.0, retry_for=PATIENCE_S, transport=transport) as client,
        client.run(name).join(rank, lease=20.0) as worker,
    ):
        worker.pull()
        results = []
        while not stop.is_set():
            results.append(worker.step(GRADIENT))
        return results


def _check(policy: str, results: list[list[stepd.StepResult]], run: stepd.Run) -> None:
    for own in results:
        steps = [result.step for result in own]
        assert steps == sorted(steps)
        for result in own:
            assert np.ptp(result.params["w"]) == 0, "of several versions"
    statuses = [result.receipt.status for own in results for result in own]
    params = run.pull()["w"]
    assert np.ptp(params) == 0
    if isinstance(POLICIES[policy], stepd.Sync):
        assert set(statuses) <= {"accepted", "late"}
    else:
        assert set(statuses) == {"accepted"}
        assert run.step_count == len(statuses)
        rounds = [result.receipt.round for own in results for result in own]
        assert len(set(rounds)) == len(rounds), "two contributions in one round"
    if policy != "damped":
        assert params[0] == -statuses.count("accepted")
