"""What each group of a run may have of its own: every hyperparameter, a schedule, a clip, a rate that is set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

import stepd
from stepd import rules
from stepd.rules import Reach, Rule
from tests.integration.one_process import Reference
from tests.integration.training import Arrays

Connect = Callable[..., stepd.Client]

STEPS = 6
SHAPE = (70_000,)
ELEMENTWISE = [
    rule for rule in Rule.registry.values() if rule.reach is Reach.ELEMENTWISE and not rule.__abstractmethods__
]


def other(rule: Rule, field: str) -> Any:
    """A value for a hyperparameter that is allowed and not the present one; None if nothing else is."""
    now = getattr(rule, field)
    tries: list[Any] = [0.5 * now] if isinstance(now, float) and now else [0.25, 2]
    if isinstance(now, bool):
        tries = [not now]
    elif isinstance(now, tuple):
        tries = [tuple(0.5 * one for one in now), tuple(1.0 + 0.5 * one for one in now), (0.25, 1.1)]
    for value in tries:
        try:
            if replace(rule, **{field: value}) != rule:
                return value
        except ValueError:
            continue
    return None


def random(seed: int, names: list[str], dtype: Any = np.float64) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(SHAPE).astype(dtype) for name in names}


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_every_hyperparameter_may_be_a_groups_own(connect: Connect, name: str, kind: type[Rule]) -> None:
    """A group for each, with another value for this one only, as if the rule had been written out for it."""
    momentum = {"momentum": 0.9} if "momentum" in {field.name for field in fields(kind)} else {}
    base = kind(lr=0.01, **momentum)
    own = {field.name: value for field in fields(kind) if (value := other(base, field.name)) is not None}
    assert "lr" in own
    names = ["base", *own]
    initial = random(0, names)
    groups = [stepd.ParamGroup({"base": initial["base"]})]
    groups += [stepd.ParamGroup({field: initial[field]}, **{field: value}) for field, value in own.items()]
    expected = [Reference(base, {"base": initial["base"]})]
    expected += [Reference(replace(base, **{field: value}), {field: initial[field]}) for field, value in own.items()]
    client = connect(3)
    run = client.create_run(name, groups, optimizer=base)
    with run.join() as worker:
        for step in range(STEPS):
            grads = random(1 + step, names)
            for reference in expected:
                reference.step({key: grads[key] for key in reference.params})
            assert worker.step(grads).lr == [reference.rule.lr for reference in expected]
    params = run.pull()
    for reference in expected:
        for key, value in reference.params.items():
            np.testing.assert_allclose(params[key], value, rtol=1e-12, atol=1e-12, err_msg=key)
    run.delete()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_group_may_have_a_schedule_and_a_clip_of_its_own(connect: Connect, name: str, shards: int) -> None:
    """As if its gradient had been clipped by itself, and then all together."""
    names = ["plain", "clipped", "limited"]
    initial, adam = random(0, names), stepd.Adam(lr=0.1)
    run = connect(shards).create_run(
        name,
        [
            stepd.ParamGroup({"plain": initial["plain"]}),
            stepd.ParamGroup({"clipped": initial["clipped"]}, schedule=stepd.Step(2), clip=stepd.ClipNorm(5.0)),
            stepd.ParamGroup({"limited": initial["limited"]}, schedule=stepd.Constant(), clip=stepd.ClipValue(0.5)),
        ],
        optimizer=adam,
        schedule=stepd.Cosine(total_steps=10, warmup_steps=2),
        clip=stepd.ClipNorm(100.0),
    )
    schedules = [stepd.Cosine(total_steps=10, warmup_steps=2), stepd.Step(2), stepd.Constant()]
    expected = [Reference(adam, {key: initial[key]}) for key in names]
    with run.join() as worker:
        for step in range(STEPS):
            rates = [schedule.rate(step, 0.1) for schedule in schedules]
            assert run.get_lr() == rates
            grads = random(1 + step, names)
            result = worker.step(grads)
            grads["clipped"] *= min(1.0, 5.0 / (np.linalg.norm(grads["clipped"]) + 1e-6))
            grads["limited"] = grads["limited"].clip(-0.5, 0.5)
            norm = float(np.sqrt(sum(np.sum(grad * grad) for grad in grads.values())))
            assert result.grad_norm == pytest.approx(norm, rel=1e-12)
            assert result.clip_scale == pytest.approx(min(1.0, 100.0 / (norm + 1e-6)), rel=1e-12)
            assert result.lr == rates
            for reference, rate in zip(expected, rates, strict=True):
                reference.step({key: grads[key] for key in reference.params}, rate, result.clip_scale)
    params = run.pull()
    for reference in expected:
        for key, value in reference.params.items():
            np.testing.assert_allclose(params[key], value, rtol=1e-12, atol=1e-12, err_msg=key)


def test_a_rate_may_be_set_for_one_group(client: stepd.Client, name: str) -> None:
    """Its schedule goes on from there, and the others do not notice; a group that is not there is refused."""
    groups = [
        stepd.ParamGroup({"a": np.zeros(1)}, schedule=stepd.Exponential(0.5)),
        stepd.ParamGroup({"b": np.zeros(1)}, schedule=stepd.Exponential(0.5)),
        stepd.ParamGroup({"c": np.zeros(1)}),
    ]
    run = client.create_run(name, groups, optimizer=stepd.SGD(lr=1.0))
    grads = {key: np.ones(1) for key in "abc"}
    with run.join() as worker:
        assert worker.step(grads).lr == [1.0, 1.0, 1.0]
        run.set_lr(0.75, group=1)
        assert run.get_lr() == [0.5, 0.75, 1.0]
        assert worker.step(grads).lr == [0.5, 0.75, 1.0]
        assert run.get_lr() == [0.25, 0.375, 1.0]
        run.set_lr(2.0)
        assert run.get_lr() == pytest.approx([2.0, 2.0, 2.0], rel=1e-15)
        with pytest.raises(stepd.InvalidArgument, match="one of 3 groups"):
            run.set_lr(1.0, group=3)


def test_names_that_overlap_are_refused_and_ids_are_positions(client: stepd.Client, name: str) -> None:
    """Also for whoever asks for the run later."""
    groups = [stepd.ParamGroup({"b": np.zeros(1), "a": np.zeros(2)}), stepd.ParamGroup({"c": np.zeros(3)})]
    with pytest.raises(stepd.OverlappingGroups, match="'a' stands twice, in the groups 0 and 2"):
        client.create_run(name, [*groups, stepd.ParamGroup({"a": np.zeros(1)})], optimizer=stepd.SGD(lr=1.0))
    run = client.create_run(name, groups, optimizer=stepd.SGD(lr=1.0))
    run.add_param_group(stepd.ParamGroup({"0": np.zeros(4)}))
    for handle in (run, client.run(name)):
        assert [(key, value.size) for key, value in handle.pull().items()] == [("b", 1), ("a", 2), ("c", 3), ("0", 4)]


def test_rules_of_this_page_are_all_there_are() -> None:
    """What is trained here grows with the rules."""
    assert {rule.__name__ for rule in ELEMENTWISE} >= {"SGD", "Adam", "AdamW", "NAdam", "ASGD", "Rprop", "Lion"}
    assert all(hasattr(rules, rule.__name__) for rule in ELEMENTWISE)
