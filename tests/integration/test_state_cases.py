"""The state of the optimizer of every rule, from torch and to torch, through real fleets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepd
from tests.integration.together import Together, once
from tests.reference.as_stepd import create_run_arguments
from tests.reference.cases import STEPS, TOLERANCE, Arrays, Case, error, gradient, initial
from tests.reference.rule_cases import OTHER_CASES
from tests.reference.state_cases import AFTER, BEFORE, STATE_CASES, state_gradient, stored_state

Connect = Callable[..., stepd.Client]
Fleets = Callable[[int], stepd.LocalFleet]


EACH = pytest.mark.parametrize("case", STATE_CASES.values(), ids=str)
# The first test of a dtype trains all of its cases: seconds, and on a busy machine many times that.
pytestmark = pytest.mark.timeout(600)


def train(run: stepd.Run, case: Case, steps: range) -> Arrays:
    """Where the run's parameters are after these steps."""
    with run.join() as worker:
        params = worker.pull()
        for step in steps:
            params = worker.step(state_gradient(case, step, params)).params
    return params


def create(client: stepd.Client, name: str, case: Case, params: Arrays) -> stepd.Run:
    return client.create_run(name, **create_run_arguments(case) | {"params": params})


def of_dtype(dtype: str) -> Together:
    return Together(case for case in STATE_CASES.values() if case.dtype == dtype)


@pytest.fixture(scope="module")
def continued(fleets: Fleets) -> Callable[[str, int], dict[str, Arrays]]:
    """All cases from torch's state on, on so many shards: where they get in 20 further steps, by case."""

    @once
    def continued(dtype: str, shards: int) -> dict[str, Arrays]:
        together = of_dtype(dtype)
        with stepd.connect(fleets(shards).target) as client:
            groups = [together.group(case, stored_state(case).params) for case in together.cases]
            run = client.create_run(f"continued-{dtype}", groups, optimizer=stepd.SGD())
            run.load_state_dict(together.joined(lambda case: stored_state(case).state_dict))
            params = together.train(run, range(BEFORE, BEFORE + AFTER), state_gradient)
            assert run.step_count == AFTER
            run.delete()
        return {case.name: together.own(case, params) for case in together.cases}

    return continued


@pytest.fixture(scope="module")
def saved(fleets: Fleets) -> Callable[[str], dict[str, dict[str, Any]]]:
    """The states of all cases after 20 steps on three shards, by case."""

    @once
    def saved(dtype: str) -> dict[str, dict[str, Any]]:
        together = of_dtype(dtype)
        with stepd.connect(fleets(3).target) as client:
            groups = [together.group(case) for case in together.cases]
            run = client.create_run(f"saved-{dtype}", groups, optimizer=stepd.SGD())
            together.train(run, range(BEFORE), state_gradient)
            state = run.state_dict()
            run.delete()
        return {case.name: together.part(case, state) for case in together.cases}

    return saved


@pytest.mark.parametrize("shards", [1, 3])
@EACH
def test_what_torch_saved_continues_here(
    continued: Callable[[str, int], dict[str, Arrays]], case: Case, shards: int
) -> None:
    """20 further steps from torch's state and parameters are torch's own."""
    final = {key: array.reshape(-1) for key, array in stored_state(case).final.items()}
    assert error(case, continued(case.dtype, shards)[case.name], final) <= TOLERANCE[case.dtype]


@EACH
def test_what_is_saved_here_is_what_torch_saved(saved: Callable[[str], dict[str, dict[str, Any]]], case: Case) -> None:
    """The same keys, shapes, dtypes and hyperparameters, and numbers as near as the parameters are."""
    expected_state, given = stored_state(case).state_dict, saved(case.dtype)[case.name]
    assert given["state"].keys() == expected_state["state"].keys()
    for index, expected in expected_state["state"].items():
        entry = given["state"][index]
        assert {key: (a.shape, a.dtype) for key, a in entry.items()} == {
            key: (a.shape, a.dtype) for key, a in expected.items()
        }
        for key, array in expected.items():
            # Averages pass through zero: compared by the largest element.
            scale = max(float(np.abs(array).max(initial=0)), 1e-3)
            np.testing.assert_allclose(entry[key], array, rtol=0, atol=50 * TOLERANCE[case.dtype] * scale)
    (group,), (expected_group,) = given["param_groups"], expected_state["param_groups"]
    assert {key: list(v) if isinstance(v, tuple) else v for key, v in group.items()} == expected_group


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name_of_case", ["sgd-momentum-float32", "adamw-amsgrad-float64"])
def test_a_run_of_one_rule_does_as_well(connect: Connect, name: str, name_of_case: str, shards: int) -> None:
    case = STATE_CASES[name_of_case]
    stored = stored_state(case)
    run = create(connect(shards), name, case, stored.params)
    run.load_state_dict(stored.state_dict)
    params = train(run, case, range(BEFORE, BEFORE + AFTER))
    assert error(case, params, {key: array.reshape(-1) for key, array in stored.final.items()}) <= TOLERANCE[case.dtype]
    run.delete()


@pytest.mark.parametrize("shards", [1, pytest.param(3, marks=pytest.mark.slow)])
@EACH
def test_what_is_saved_here_continues_in_torch(connect: Connect, name: str, case: Case, shards: int) -> None:
    """20 further steps in torch end where 20 further steps here do."""
    pytest.importorskip("torch")
    Training = importlib.import_module("tests.reference.torch_states").Training  # noqa: N806 (a class)
    run = create(connect(shards), name, case, initial(case))
    params = train(run, case, range(BEFORE))
    training = Training(case, params)
    training.optimizer.load_state_dict(stepd.compat.to_torch(run.state_dict()))
    theirs = training.train(range(BEFORE, BEFORE + AFTER))
    ours = train(run, case, range(BEFORE, BEFORE + AFTER))
    assert error(case, ours, {key: array.reshape(-1) for key, array in theirs.items()}) <= TOLERANCE[case.dtype]
    run.delete()


def test_torchs_tensors_are_read_as_they_are(connect: Connect, name: str) -> None:
    torch = pytest.importorskip("torch")
    Training = importlib.import_module("tests.reference.torch_states").Training  # noqa: N806 (a class)
    case = STATE_CASES["adamw-float32"]
    training = Training(case, initial(case))
    run = create(connect(3), name, case, training.train(range(BEFORE)))
    run.load_state_dict(training.optimizer.state_dict())
    for index, entry in training.optimizer.state_dict()["state"].items():
        for key, tensor in entry.items():
            assert torch.equal(torch.as_tensor(run.state_dict()["state"][index][key]), tensor)


OTHERS = [case for case in OTHER_CASES.values() if not case.clip and not case.gaps]


@pytest.fixture(scope="module")
def moved(fleets: Fleets) -> Callable[[str], dict[str, Arrays]]:
    """All rules that torch has not, after a hundred steps; half way their state goes over to another run."""

    @once
    def moved(dtype: str) -> dict[str, Arrays]:
        together = Together(case for case in OTHERS if case.dtype == dtype)
        with stepd.connect(fleets(3).target) as first, stepd.connect(fleets(1).target) as second:
            before = first.create_run(f"moved-{dtype}", [*map(together.group, together.cases)], optimizer=stepd.SGD())
            middle = together.train(before, range(STEPS // 2), gradient)
            groups = [together.group(case, together.own(case, middle)) for case in together.cases]
            after = second.create_run(f"moved-{dtype}", groups, optimizer=stepd.SGD())
            after.load_state_dict(before.state_dict())
            end = together.train(after, range(STEPS // 2, STEPS), gradient)
            before.delete()
            after.delete()
        return {case.name: together.own(case, end) for case in together.cases}

    return moved


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_rules_that_torch_has_not_end_where_their_papers_do(
    moved: Callable[[str], dict[str, Arrays]], case: Case
) -> None:
    """Though their state goes over to another run, on other shards, in the middle of a hundred steps."""
    assert error(case, moved(case.dtype)[case.name]) <= TOLERANCE[case.dtype]
