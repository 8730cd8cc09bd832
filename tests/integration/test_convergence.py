"""A small problem is solved under every policy, by workers of different speed that each see a part of the data."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

import stepd
from stepd.policies import AnySync
from tests.integration.training import Arrays, at_once
from tests.patience import PATIENCE_S

WORKERS = 3
STEPS = 60
# Seconds that a gradient of each takes: one is slow, as there always is one.
PACE = (0.001, 0.002, 0.02)

POLICIES: dict[str, AnySync] = {
    "all": stepd.Sync(workers=WORKERS),
    "whoever": stepd.Sync(),
    "weighted": stepd.Sync(workers=WORKERS, reduce="weighted"),
    "quorum": stepd.Sync(quorum=2),
    "quorum with grace": stepd.Sync(workers=WORKERS, quorum=2, grace=0.01),
    "async": stepd.Async(),
    "async, damped": stepd.Async(damping="inverse"),
    "async, not too stale": stepd.Async(max_staleness=8),
    "bounded staleness": stepd.BoundedStaleness(WORKERS, 3),
}


class Problem:
    """Least squares with a solution, which is the same for every part of the data."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self._parts = [rng.standard_normal((40, 8)) for _ in range(WORKERS)]
        self._solution = rng.standard_normal(8)

    def gradient(self, rank: int, params: Arrays) -> Arrays:
        part = self._parts[rank]
        return {"w": (part.T @ (part @ (params["w"] - self._solution)) / len(part)).astype(np.float32)}

    def distance(self, params: Arrays) -> float:
        """From the solution, as a part of what it was in the beginning."""
        return float(np.linalg.norm(params["w"] - self._solution) / np.linalg.norm(self._solution))


# The others are for `make test-slow`.
QUICK = {"all", "whoever", "quorum with grace", "async, not too stale", "bounded staleness"}


@pytest.mark.parametrize(
    "policy", [pytest.param(policy, marks=() if policy in QUICK else pytest.mark.slow) for policy in POLICIES]
)
def test_every_policy_solves_a_small_problem(connect: Callable[..., stepd.Client], name: str, policy: str) -> None:
    problem = Problem()
    run = connect(3).create_run(
        name,
        {"w": np.zeros(8, np.float32)},
        optimizer=stepd.SGD(lr=0.2, momentum=0.5),
        schedule=stepd.Linear(total_steps=2 * STEPS),
        clip=stepd.ClipNorm(2.0),
        sync=POLICIES[policy],
    )

    def work(rank: int) -> set[str]:
        statuses = set[str]()
        with connect(3, retry_for=PATIENCE_S).run(name).join(rank) as worker:
            params, step = worker.pull(), 0
            while step < STEPS:
                time.sleep(PACE[rank])
                result = worker.step(problem.gradient(rank, params), weight=1.0 + rank)
                params, step = result.params, result.step
                statuses.add(result.receipt.status)
            # Whoever is at the end first keeps nobody waiting.
            run.update(sync=stepd.Async())
        return statuses

    statuses = set[str]().union(*at_once(work, WORKERS))
    assert statuses <= {"accepted", "late", "stale"}
    assert problem.distance(run.pull()) < 1e-2
