"""Every rule through the wire: a hundred steps in both dtypes, with and without clipping, on one shard and on three.

All cases of one dtype are groups of one run, with a rule, a schedule and a clip of their own: so this takes seconds.
(A clip of the run and its norm are test_training's.) Gradients of all are one contribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

import stepd
from stepd.rules import Rule
from tests.reference import papers
from tests.reference.as_stepd import clip, schedule
from tests.reference.cases import CASES, LARGE, STEPS, TOLERANCE, Case, error, gradient, initial, reference
from tests.reference.rule_cases import OTHER_CASES, TORCH_CASES

Fleets = Callable[[int], stepd.LocalFleet]

SHARDS = (1, 3)
# The first test of a dtype trains all of its cases, twice.
pytestmark = pytest.mark.timeout(240)


def _large() -> dict[str, Case]:
    """A tensor that lies on all three shards, for rules that want its norms. Known from papers.py."""
    rules: tuple[tuple[str, dict[str, Any]], ...] = (
        ("LAMB", {"lr": 0.01, "weight_decay": 0.1}),
        ("LARS", {"lr": 0.05, "trust_coefficient": 0.1}),
    )
    cases = [
        Case(f"{rule.lower()}-large-{dtype}", dtype, rule, options, clip={"max_norm": 1.0}, shapes=LARGE)
        for dtype in TOLERANCE
        for rule, options in rules
    ]
    return {case.name: case for case in cases}


LARGE_CASES = _large()
# Groups of a case's own have one clip in common, which groups of a run have not.
EVERY_CASE = {name: case for name, case in (CASES | TORCH_CASES | OTHER_CASES).items() if not case.groups} | LARGE_CASES


@dataclass(frozen=True)
class Trained:
    """By name of the case: parameters at the end, and the rates of all steps."""

    params: dict[str, dict[str, np.ndarray]]
    lr: dict[str, list[float]]


def _prefix(case: Case) -> str:
    # Not the case's name: rules look for "bias" and "norm" in the names of parameters.
    return f"{list(EVERY_CASE).index(case.name)}/"


def _group(case: Case) -> stepd.ParamGroup:
    options = dict(case.options)
    if "exclude" in options:
        options["exclude"] = tuple(g if g.startswith("*") else _prefix(case) + g for g in options["exclude"])
    return stepd.ParamGroup(
        {_prefix(case) + name: value for name, value in initial(case).items()},
        optimizer=getattr(stepd, case.rule)(**options),
        schedule=schedule(case.schedule),
        clip=clip(case),
    )


def _own(case: Case, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: params[_prefix(case) + name] for name in case.shapes}


@pytest.fixture(scope="module")
def trained(fleets: Fleets) -> Callable[[str, int], Trained]:
    """All cases of a dtype, trained on so many shards."""

    @cache
    def train(dtype: str, shards: int) -> Trained:
        cases = [case for case in EVERY_CASE.values() if case.dtype == dtype]
        with stepd.connect(fleets(shards).target) as client:
            groups = [_group(case) for case in cases]
            run = client.create_run(f"rules-{dtype}", groups, optimizer=stepd.SGD(), sync=stepd.Sync(workers=1))
            rates = []
            with run.join() as worker:
                params = worker.pull()
                for step in range(STEPS):
                    grads = {
                        _prefix(case) + name: grad
                        for case in cases
                        for name, grad in gradient(case, step, _own(case, params)).items()
                    }
                    result = worker.step(grads)
                    assert not result.skipped
                    params = result.params
                    rates.append(result.lr)
            run.delete()
        lr = {case.name: [of_step[i] for of_step in rates] for i, case in enumerate(cases)}
        return Trained({case.name: _own(case, params) for case in cases}, lr)

    return train


@pytest.mark.parametrize("case", EVERY_CASE.values(), ids=str)
def test_a_hundred_steps_give_the_known_numbers(trained: Callable[[str, int], Trained], case: Case) -> None:
    """Within 1e-6 in float32 and 1e-12 in float64; and the same bits whatever the number of shards."""
    ends = [trained(case.dtype, shards) for shards in SHARDS]
    for name, array in ends[0].params[case.name].items():
        assert array.tobytes() == ends[1].params[case.name][name].tobytes(), name
    if case.name in LARGE_CASES:
        final, _, rates, _ = papers.train(case)
        flat = {name: array.reshape(-1) for name, array in final.items()}
        assert error(case, ends[0].params[case.name], flat) <= TOLERANCE[case.dtype]
    else:
        assert error(case, ends[0].params[case.name]) <= TOLERANCE[case.dtype]
        rates = reference(case).lr
    np.testing.assert_allclose(ends[0].lr[case.name], rates[:, 0], rtol=1e-12)


def test_every_rule_is_here() -> None:
    exported = {getattr(stepd, name) for name in stepd.__all__}
    rules = {each.__name__ for each in exported if isinstance(each, type) and issubclass(each, Rule)}
    assert (
        {case.rule for case in EVERY_CASE.values()}
        == rules
        == {name for name in Rule.registry if not name.startswith("_")}
    )
