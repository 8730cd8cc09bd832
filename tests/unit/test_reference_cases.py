"""The cases that torch's numbers were made from say what they claim."""

from __future__ import annotations

import numpy as np
import pytest

from tests.reference import schedule_cases
from tests.reference.cases import CASES, STORED, TOLERANCE, Case, gradient, initial, reference
from tests.reference.rule_cases import OTHER_CASES, OTHER_STORED, SPANNING_CASES, TORCH_CASES, TORCH_STORED

# Of the bias (seed 2) before the first step: 1 + 0.5 * noise, by splitmix64 in integers of Python.
NOISE = [
    0.7357696609793668,
    0.8520251251318848,
    0.602071650234159,
    1.418134624286537,
    0.7053201322563795,
    0.5605334530801704,
    1.0031494440014441,
]


@pytest.mark.parametrize("case", [CASES["adamw-float32"], CASES["sgd-nesterov-gaps-float64"]], ids=str)
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_the_mean_over_workers_is_the_gradient(case: Case, workers: int) -> None:
    """Whoever leaves a parameter out counts as zeros, as on the servers; and no two workers send the same."""
    params = initial(case)
    for step in range(8):
        whole = gradient(case, step, params)
        each = [gradient(case, step, params, worker, workers) for worker in range(workers)]
        assert set().union(*each) == set(whole)
        for name, expected in whole.items():
            sent = [grads[name] for grads in each if name in grads]
            assert all(grad.dtype == case.dtype for grad in sent)
            assert len({grad.tobytes() for grad in sent}) == len(sent)
            np.testing.assert_allclose(sum(sent) / workers, expected, rtol=TOLERANCE[case.dtype])


def test_gaps() -> None:
    """With gaps some parameters have no gradient in some steps, and some have one of a single worker only."""
    case = CASES["sgd-nesterov-gaps-float64"]
    params = initial(case)
    assert "bias" not in gradient(case, 0, params)
    assert "bias" in gradient(case, 1, params)
    assert "dense.weight" in gradient(case, 2, params, worker=0, workers=2)
    assert "dense.weight" not in gradient(case, 2, params, worker=1, workers=2)


def test_noise_is_the_same_everywhere() -> None:
    """Numbers computed elsewhere: if these change, torch's must be made again."""
    assert initial(CASES["sgd-float64"])["bias"].tolist() == NOISE


def test_what_is_stored_is_small_and_whole() -> None:
    """Every case has its numbers, in few bytes."""
    assert STORED.stat().st_size < 300_000
    assert TORCH_STORED.stat().st_size + OTHER_STORED.stat().st_size + schedule_cases.STORED.stat().st_size < 650_000
    for case in (CASES | TORCH_CASES | OTHER_CASES | SPANNING_CASES).values():
        numbers = reference(case)
        assert set(numbers.final) == set(case.shapes)
        assert numbers.lr.shape == (100, len(case.all_groups()))
        assert numbers.norm.shape == (100,)
        assert all(np.isfinite(value).all() for value in (*numbers.final.values(), numbers.lr, numbers.norm))
