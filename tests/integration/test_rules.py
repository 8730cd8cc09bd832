"""Every rule through the wire: a hundred steps in both dtypes, with and without clipping, on one shard and on three.

All cases of one dtype are groups of one run, with a rule, a schedule and a clip of their own: so this takes seconds.
(A clip of the run and its norm are test_training's.) Gradients of all are one contribution. Groups with a tensor for
all shards are added to the live run, one by one: each of them is laid out over all shards by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import stepd
from stepd.rules import Reach, Rule
from tests.integration.layouts import shards_of
from tests.integration.together import Together, once
from tests.reference.cases import CASES, STEPS, TOLERANCE, Arrays, Case, error, gradient, reference
from tests.reference.rule_cases import OTHER_CASES, SPANNING_CASES, TORCH_CASES

Fleets = Callable[[int], stepd.LocalFleet]

# Cases with a tensor for all shards cost what their size is: after so many steps they are compared to the bit.
EARLY = 10
# The first test of a dtype trains all of its cases, twice: many seconds, and on a busy machine many times that.
pytestmark = pytest.mark.timeout(1200)

# Groups of a case's own have one clip in common, which groups of a run have not.
SMALL_CASES = {name: case for name, case in (CASES | TORCH_CASES | OTHER_CASES).items() if not case.groups}
EVERY_CASE = SMALL_CASES | SPANNING_CASES
# A hundred steps are for rules that must see more of a tensor than an element, and for one that need not. What the
# others do to an element, small tensors show.
LONG_CASES = {
    name: case
    for name, case in SPANNING_CASES.items()
    if case.rule == "AdamW" or getattr(stepd, case.rule).reach is not Reach.ELEMENTWISE
}


@dataclass(frozen=True)
class Trained:
    """Attributes:
    early: parameters after EARLY steps, by name of the case.
    params: at the end, by name of the case.
    lr: the rates of all steps, by name of the case.
    lies_on: by name of the case: how many shards its parameters lie on.
    """

    params: dict[str, Arrays]
    lr: dict[str, list[float]]
    lies_on: dict[str, dict[str, int]]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def trained(fleets: Fleets) -> Train:
    """All small cases of a dtype, trained on so many shards, and these of those that have a tensor for all shards."""

    @once
    def trained(dtype: str, shards: int, steps: int, *spanning: str) -> Trained:
        small = [case for case in SMALL_CASES.values() if case.dtype == dtype]
        added = [case for case in SPANNING_CASES.values() if case.dtype == dtype and case.name in spanning]
        together = Together([*small, *added])
        with stepd.connect(fleets(shards).target) as client, contextlib.ExitStack() as cleanup:
            groups = [together.group(case) for case in small]
            run = client.create_run(f"rules-{dtype}", groups, optimizer=stepd.SGD(), sync=stepd.Sync(workers=1))
            cleanup.callback(run.delete)
            for case in added:
                run.add_param_group(together.group(case))
            lies_on = shards_of(client, run.name)
            rates: list[list[float]] = []

            def note(result: stepd.StepResult) -> None:
                assert not result.skipped
                rates.append(result.lr)

            params = together.train(run, range(steps), gradient, note)
        return Trained(
            {case.name: together.own(case, params) for case in together.cases},
            {case.name: [of_step[i] for of_step in rates] for i, case in enumerate(together.cases)},
            {case.name: together.own(case, lies_on) for case in together.cases},
        )

    return trained


@pytest.mark.parametrize("case", SMALL_CASES.values(), ids=str)
def test_a_hundred_steps_give_the_known_numbers(trained: Train, case: Case) -> None:
    """Within 1e-6 in float32 and 1e-12 in float64; and the same bits whatever the number of shards."""
    one, three = trained(case.dtype, 1, STEPS), trained(case.dtype, 3, STEPS, *LONG_CASES)
    check_bits(one.params[case.name], three.params[case.name])
    check_numbers(case, one)


@pytest.mark.parametrize("case", LONG_CASES.values(), ids=str)
def test_a_tensor_that_lies_on_all_shards_gives_the_known_numbers_as_well(trained: Train, case: Case) -> None:
    three = trained(case.dtype, 3, STEPS, *LONG_CASES)
    check_numbers(case, three)
    assert three.lies_on[case.name]["table"] == 3


@pytest.mark.parametrize("case", SPANNING_CASES.values(), ids=str)
def test_a_large_tensor_has_the_same_bits_on_one_shard_and_on_all(trained: Train, case: Case) -> None:
    one, three = trained(case.dtype, 1, EARLY, *SPANNING_CASES), trained(case.dtype, 3, EARLY, *SPANNING_CASES)
    check_bits(one.params[case.name], three.params[case.name])
    assert three.lies_on[case.name]["table"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("case", SPANNING_CASES.values(), ids=str)
def test_a_large_tensor_gives_the_known_numbers_after_a_hundred_steps(trained: Train, case: Case) -> None:
    one, three = trained(case.dtype, 1, STEPS, *SPANNING_CASES), trained(case.dtype, 3, STEPS, *SPANNING_CASES)
    check_bits(one.params[case.name], three.params[case.name])
    check_numbers(case, one)


def check_bits(one: Arrays, other: Arrays) -> None:
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name


def check_numbers(case: Case, trained: Trained) -> None:
    assert error(case, trained.params[case.name]) <= TOLERANCE[case.dtype]
    np.testing.assert_allclose(trained.lr[case.name], reference(case).lr[:, 0], rtol=1e-12)


def test_nothing_is_left_out() -> None:
    """Every rule stands here in both dtypes, clipped and not, with parameters of every form unless it takes matrices
    only; and clipped with a tensor for all shards unless it must see tensors whole."""
    exported = {getattr(stepd, name) for name in stepd.__all__}
    rules = {each for each in exported if isinstance(each, type) and issubclass(each, Rule)}
    assert {rule.__name__ for rule in rules} == {name for name in Rule.registry if not name.startswith("_")}
    for rule in rules:
        for dtype in TOLERANCE:
            for clipped in (False, True):
                own = [
                    case
                    for case in EVERY_CASE.values()
                    if (case.rule, case.dtype, bool(case.clip)) == (rule.__name__, dtype, clipped)
                ]
                dimensions = {len(shape) for case in own for shape in case.shapes.values()}
                assert dimensions == ({2} if rule is stepd.Muon else {0, 1, 2, 4}), rule
                spanning = clipped and rule.reach is not Reach.WHOLE
                assert any(case.name in SPANNING_CASES for case in own) == spanning, rule
