"""Torch's numbers through the wire: real processes, real sockets, any number of shards and workers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import stepd
from tests.integration.training import train
from tests.reference.as_stepd import create_run_arguments
from tests.reference.cases import CASES, STEPS, TOLERANCE, Case, error, gradient, reference

Fleets = Callable[[int], stepd.LocalFleet]

PLACES = [(shards, workers) for shards in (1, 3) for workers in (1, 2, 3)]
# Every rule clipped and on a schedule, and whatever else there is, somewhere; one everywhere. Most are slow, as each
# costs 100 round trips: test_rules.py has every rule on one shard and on three, with one worker.
# (Rules alone are held against torch in the unit tests.)
CHOSEN = [case for case in CASES.values() if case.clip or case.gaps or case.groups]
EVERYWHERE = "adamw-clip-cosine-float32"
# Each kind of limit, groups and gaps, in every place.
QUICK = {
    ("sgd-clip-max-float32", 1, 1),
    (EVERYWHERE, 1, 2),
    ("adamw-amsgrad-gaps-float32", 1, 3),
    ("sgd-clip-both-float64", 3, 1),
    ("adamw-groups-float64", 3, 2),
    ("adam-clip-one-float64", 3, 2),
    (EVERYWHERE, 3, 3),
}
RUNS = dict.fromkeys(
    [(case.name, *PLACES[i % len(PLACES)]) for i, case in enumerate(CHOSEN)]
    + [(EVERYWHERE, *place) for place in PLACES]
    + sorted(QUICK)
)
MATRIX = [
    pytest.param(CASES[name], shards, workers, id=f"{name}-S{shards}W{workers}", marks=marks)
    for name, shards, workers in RUNS
    for marks in [() if (name, shards, workers) in QUICK else pytest.mark.slow]
]


@pytest.mark.parametrize(("case", "shards", "workers"), MATRIX)
def test_a_hundred_steps_give_torchs_numbers(fleets: Fleets, name: str, case: Case, shards: int, workers: int) -> None:
    fleet = fleets(shards)
    with stepd.connect(fleet.target) as client:
        run = client.create_run(name, sync=stepd.Sync(workers=workers), **create_run_arguments(case))

        def share(worker: int, step: int, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return gradient(case, step, params, worker, workers)

        everybody = train(fleet.target, name, share, workers=workers, steps=STEPS)
        expected = reference(case)
        for results in everybody:
            assert [result.step for result in results] == list(range(1, STEPS + 1))
            assert error(case, results[-1].params) <= TOLERANCE[case.dtype]
            np.testing.assert_allclose([result.lr for result in results], expected.lr, rtol=1e-12)
            np.testing.assert_allclose(
                [result.grad_norm for result in results], expected.norm, rtol=10 * TOLERANCE[case.dtype]
            )
        assert error(case, run.pull()) <= TOLERANCE[case.dtype]
        for array, other in zip(everybody[0][-1].params.values(), everybody[-1][-1].params.values(), strict=True):
            np.testing.assert_array_equal(array, other)
        run.delete()


@pytest.mark.parametrize("case_name", ["adamw-large-float32", "sgd-clip-both-float64", "adam-clip-one-float32"])
def test_deterministic_runs_give_the_same_bits_on_any_number_of_shards(
    fleets: Fleets, name: str, case_name: str
) -> None:
    case, steps = CASES[case_name], 20

    def share(worker: int, step: int, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return gradient(case, step, params, worker, 3)

    ends = []
    for shards in (1, 2, 3):
        fleet = fleets(shards)
        with stepd.connect(fleet.target) as client:
            sync = stepd.Sync(workers=3, deterministic=True)
            run = client.create_run(f"{name}-{shards}", sync=sync, **create_run_arguments(case))
            results = train(fleet.target, run.name, share, workers=3, steps=steps)[0]
            ends.append((results[-1].params, [result.grad_norm for result in results]))
            run.delete()
    for params, norms in ends[1:]:
        assert norms == ends[0][1]
        for key, array in params.items():
            assert array.tobytes() == ends[0][0][key].tobytes(), key
