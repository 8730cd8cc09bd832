"""State under the names of other libraries, there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stepd
from stepd import compat, torch_form
from stepd.parameters import define_run
from stepd.rules import LARS, SGD, Adam, AdamW, RMSprop, Rule
from stepd.specs import run_from_proto
from stepd.state_space import OptimizerState

F4 = np.float32
PARAMS = {"w": np.zeros((2, 3), F4), "bias": np.zeros(3, F4), "late": np.zeros(2, F4)}


def state_of(rule: Rule, counts: tuple[int, ...] = (5, 5, 0)) -> dict[str, Any]:
    """What `Run.state_dict` gives of a run whose last parameter never stepped."""
    spec = run_from_proto(define_run("run", PARAMS, optimizer=rule)[0])
    buffers = [
        [np.full(p.shape, 10 * i + j + 0.5, F4) for j in range(len(rule.buffers()))]
        for i, p in enumerate(spec.parameters)
    ]
    scalars = [tuple(scalar.initial for scalar in rule.scalars())] * len(PARAMS)
    return torch_form.write(spec, OptimizerState(list(counts), scalars, buffers), [rule.lr])


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for index, entry in one["state"].items():
        assert entry.keys() == other["state"][index].keys()
        for key, value in entry.items():
            assert np.asarray(value).dtype == np.asarray(other["state"][index][key]).dtype
            np.testing.assert_array_equal(value, other["state"][index][key])


def test_born_names_velocities_and_moments_by_index() -> None:
    sgd = state_of(SGD(momentum=0.9))
    born = compat.to_born(sgd)
    assert (list(born.tensors), born.timestep) == (["velocity.0", "velocity.1"], 0)
    assert born.tensors["velocity.1"] is sgd["state"][1]["momentum_buffer"]
    same(compat.from_born(born.tensors, like=sgd), sgd)
    adam = state_of(Adam())
    born = compat.to_born(adam)
    assert (sorted(born.tensors), born.timestep) == (["m.0", "m.1", "v.0", "v.1"], 5)
    same(compat.from_born(born.tensors, timestep=born.timestep, like=adam), adam)


def test_born_is_told_what_it_cannot_have() -> None:
    adam = state_of(AdamW(), counts=(5, 4, 0))
    with pytest.raises(
        stepd.InvalidArgument, match="Born counts steps for all parameters together; here they have 4, 5"
    ):
        compat.to_born(adam)
    with pytest.raises(stepd.InvalidArgument, match="parameter 0: Born has no 'square_avg'"):
        compat.to_born(state_of(RMSprop()))
    with pytest.raises(stepd.InvalidArgument, match=r"timestep must be at least 1 with m\.i and v\.i, got None"):
        compat.from_born({"m.0": PARAMS["w"], "v.0": PARAMS["w"]}, like=adam)
    for name in ("m.3", "w.0", "m.x", "velocity"):
        with pytest.raises(stepd.InvalidArgument, match=f"name must be velocity.i, .* from 0 to 2, got '{name}'"):
            compat.from_born({name: PARAMS["w"]}, like=adam, timestep=1)


def test_lugh_has_options_a_count_and_lists_in_the_order_of_add_param() -> None:
    adam = state_of(AdamW(lr=0.25, betas=(0.5, 0.75), weight_decay=0.125))
    lugh = compat.to_lugh(adam)
    lists = {name: lugh.pop(name) for name in ("m", "v")}
    assert lugh == {"lr": 0.25, "eps": 1e-8, "weight_decay": 0.125, "beta1": 0.5, "beta2": 0.75, "step_count": 5}
    assert [value is None for value in lists["m"]] == [False, False, True]
    assert lists["v"][1] is adam["state"][1]["exp_avg_sq"]
    other = state_of(AdamW())
    same(compat.from_lugh(lugh | lists, like=other), adam)
    sgd = state_of(SGD(lr=0.5, momentum=0.9, nesterov=True))
    lugh = compat.to_lugh(sgd)
    assert sorted(lugh) == ["lr", "momentum", "nesterov", "v", "weight_decay"]
    same(compat.from_lugh(lugh | {"nesterov": 1}, like=state_of(SGD(momentum=0.9))), sgd)


def test_lugh_is_told_what_does_not_fit() -> None:
    like = state_of(AdamW())
    zeros = [np.zeros(np.shape(value), F4) for value in PARAMS.values()]
    for wrong, message in (
        ({"m": zeros[:2]}, "m must be 3 arrays, one for each parameter, got 2"),
        ({"m": zeros, "v": zeros}, "step_count must be at least 1 with m and v, got None"),
        ({"momentum": 0.9}, "name must be lr, .* got 'momentum'"),
    ):
        with pytest.raises(stepd.InvalidArgument, match=message):
            compat.from_lugh(wrong, like=like)
    with pytest.raises(stepd.InvalidArgument, match="param_groups must be one group, got 2"):
        compat.to_lugh({"state": {}, "param_groups": [{"params": []}, {"params": []}]})


def test_tensorlogic_has_flat_velocities_by_name() -> None:
    lars = state_of(LARS(lr=1.0, trust_coefficient=0.25, exclude=("*bias*",)), counts=(1, 1, 0))
    told = compat.to_tensorlogic(lars)
    assert list(told) == ["trust_coef", "exclude_bias", "velocity_w", "velocity_bias"]
    assert (told["trust_coef"], told["exclude_bias"]) == ([0.25], [1.0])
    assert (told["velocity_w"].shape, told["velocity_w"].dtype) == ((6,), np.float64)
    vectors = {name: list(value) for name, value in told.items()}
    same(compat.from_tensorlogic(vectors, like=state_of(LARS(lr=1.0)), params=PARAMS), lars)
    plain = compat.from_tensorlogic({"exclude_bias": [0.0]}, like=lars, params=PARAMS)
    assert plain["param_groups"][0]["exclude"] == ()


def test_tensorlogic_is_told_what_does_not_fit() -> None:
    lars = state_of(LARS(lr=1.0))
    with pytest.raises(stepd.ShapeMismatch, match="parameter 'w': 'velocity_w' must have 6 elements, got 5"):
        compat.from_tensorlogic({"velocity_w": [0.0] * 5}, like=lars, params=PARAMS)
    with pytest.raises(stepd.InvalidArgument, match=r"name must be .* got 'velocity_x'"):
        compat.from_tensorlogic({"velocity_x": [0.0]}, like=lars, params=PARAMS)
    with pytest.raises(stepd.InvalidArgument, match="rule must be LARS"):
        compat.to_tensorlogic(state_of(SGD(momentum=0.9)))


def test_torch_gets_tensors() -> None:
    torch = pytest.importorskip("torch")
    state = compat.to_torch(state_of(Adam()))
    assert state["state"][0]["step"].dtype == torch.float32
    assert state["state"][0]["exp_avg"].shape == (2, 3)
