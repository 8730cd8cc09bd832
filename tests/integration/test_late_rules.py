"""Rules that see more than an element, cycles and plateaus: in groups that come to a live run, and in states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepd
from tests.integration.training import Arrays

Connect = Callable[..., stepd.Client]

OLD = {"w": (30, 40), "b": (7,)}
NEW = {"head": (70, 33), "tail": (12, 20), "wide": (9, 400)}
CYCLE = stepd.OneCycle(max_lr=0.1, total_steps=20)
RULES = [
    (stepd.Muon(lr=0.02), None),
    (stepd.Adafactor(lr=0.02), None),
    (stepd.LARS(lr=0.02, momentum=0.9), None),
    (stepd.LAMB(lr=0.02), None),
    (stepd.SGD(lr=0.02), CYCLE),
    (stepd.AdamW(lr=0.02), stepd.ReduceOnPlateau(patience=0)),
]


def random(seed: int, **shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def train(run: stepd.Run, seeds: range) -> Arrays:
    params: Arrays = {}
    with run.join() as worker:
        for seed in seeds:
            params = worker.step(random(seed, **OLD, **NEW)).params
    return params


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("rule", "schedule"), RULES, ids=lambda value: type(value).__name__)
def test_a_late_group_is_as_one_that_was_there(
    connect: Connect, name: str, rule: Any, schedule: Any, shards: int
) -> None:
    """It trains as in a run that had it from the beginning, and its state goes over to that run and back."""
    client, old, new = connect(shards), random(0, **OLD), random(1, **NEW)
    first = stepd.ParamGroup(old, optimizer=stepd.SGD(lr=0.1, momentum=0.5))
    second = stepd.ParamGroup(new, optimizer=rule, schedule=schedule)
    whole = client.create_run(f"{name}-whole", [first, second], optimizer=stepd.SGD(lr=0.1))
    late = client.create_run(name, [first], optimizer=stepd.SGD(lr=0.1))
    late.add_param_group(second)
    expected, got = train(whole, range(2, 6)), train(late, range(2, 6))
    for key, value in expected.items():
        np.testing.assert_array_equal(got[key], value, err_msg=key)
    state = late.state_dict()
    expected = train(late, range(6, 8))
    again = (
        client.create_run(
            f"{name}-again",
            [
                stepd.ParamGroup({key: got[key] for key in OLD}, optimizer=first.optimizer),
                stepd.ParamGroup({key: got[key] for key in NEW}, optimizer=rule),
            ],
            optimizer=stepd.SGD(lr=0.1),
        )
        if schedule is None
        else None
    )
    if again is not None:
        again.load_state_dict(state)
        continued = train(again, range(6, 8))
        for key, value in expected.items():
            np.testing.assert_array_equal(continued[key], value, err_msg=key)
        again.delete()
    whole.delete()
    late.delete()
