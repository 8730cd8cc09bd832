"""The state of the optimizer goes out and comes in through real fleets: one for all shards, and all or nothing."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepd
from tests.patience import PATIENCE_S
from tests.reference.cases import LARGE

Connect = Callable[..., stepd.Client]
F4 = np.float32


def large(client: stepd.Client, name: str, optimizer: Any = None) -> stepd.Run:
    params = {key: np.zeros(shape, F4) for key, shape in LARGE.items()}
    return client.create_run(name, params, optimizer=optimizer or stepd.AdamW(lr=0.1))


def ones(value: float = 1.0) -> dict[str, np.ndarray]:
    return {key: np.full(shape, value, F4) for key, shape in LARGE.items()}


def test_a_state_goes_from_any_number_of_shards_to_any_other(connect: Connect, name: str) -> None:
    """With the same bits, and the same bytes."""
    states, ends = [], []
    for shards in (1, 3):
        run = large(connect(shards), f"{name}-{shards}")
        with run.join() as worker:
            for step in range(3):
                worker.step(ones(step + 0.5))
        states.append(run.state_dict())
    assert pickle.dumps(states[0]) == pickle.dumps(states[1])
    for shards, state in zip((3, 1), states, strict=True):
        run = large(connect(shards), f"{name}-again-{shards}")
        run.load_state_dict(state)
        assert pickle.dumps(run.state_dict()) == pickle.dumps(state)
        with run.join() as worker:
            ends.append(worker.step(ones()).params["table"].tobytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "rule",
    [
        stepd.LARS(0.1, weight_decay=0.1, trust_coefficient=0.1),
        stepd.LAMB(0.1, weight_decay=0.1),
        stepd.Lion(0.01),
        stepd.Yogi(0.1),
        stepd.ScheduleFreeSGD(0.1, warmup_steps=3),
        stepd.ScheduleFreeAdamW(0.1),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_rules_that_torch_has_not_go_on_to_the_bit(connect: Connect, name: str, rule: Any) -> None:
    """Their state goes on as well, and what never stepped begins anew."""
    whole = large(connect(3), f"{name}-whole", rule)
    with whole.join() as worker:
        worker.step({"table": ones()["table"]})
        params, state = worker.pull(), whole.state_dict()
        expected = worker.step(ones(2)).params
    run = connect(1).create_run(name, params, optimizer=rule)
    run.load_state_dict(state)
    with run.join() as worker:
        for key, array in worker.step(ones(2)).params.items():
            assert array.tobytes() == expected[key].tobytes()


def test_hyperparameters_come_with_the_state(connect: Connect, name: str) -> None:
    run = large(connect(3), name, stepd.SGD(lr=1.0, momentum=0.5))
    state = run.state_dict()
    state["param_groups"][0] |= {"lr": 0.25, "momentum": 0.75, "weight_decay": 0.0, "foreach": True, "anything": 1}
    run.load_state_dict(state)
    assert run.get_lr() == [0.25]
    assert run.info().optimizer == stepd.SGD(lr=0.25, momentum=0.75)
    with run.join() as worker:
        worker.step(ones())
        assert worker.step(ones()).params["table"][0, 0] == -0.25 - 0.25 * 1.75


def test_the_schedule_goes_on_from_the_rate_that_is_loaded(connect: Connect, name: str) -> None:
    client = connect(3)
    run = client.create_run(name, ones(), optimizer=stepd.SGD(lr=1.0), schedule=stepd.Linear(total_steps=4))
    with run.join() as worker:
        worker.step(ones())
        state = run.state_dict()
        assert (state["param_groups"][0]["lr"], state["param_groups"][0]["initial_lr"]) == (0.75, 1.0)
        state["param_groups"][0]["lr"] = 0.375
        run.load_state_dict(state)
        assert [worker.step(ones()).lr for _ in range(3)] == [[0.375], [0.25], [0.125]]
        state = run.state_dict()
        run.load_state_dict(state)
        assert run.get_lr() == [0.0], "a rate that is what it is may be given where the schedule leaves no choice"


def test_a_worker_in_the_middle_of_a_step_sends_again(connect: Connect, name: str) -> None:
    """Nothing that was gathered under the old state is applied to it, nor lost."""
    client = connect(3)
    run = client.create_run(name, ones(0), optimizer=stepd.SGD(lr=1.0, momentum=0.5), sync=stepd.Sync(workers=2))
    first, second = run.join(0), run.join(1)
    results: list[stepd.StepResult] = []
    waiting = threading.Thread(target=lambda: results.append(first.step(ones())))
    waiting.start()
    state = {
        "state": {i: {"momentum_buffer": np.full(shape, 4, F4)} for i, shape in enumerate(LARGE.values())},
        "param_groups": [{"params": [0, 1]}],
    }
    run.load_state_dict(state)
    results.append(second.step(ones()))
    waiting.join(PATIENCE_S)
    assert [result.params["table"][0, 0] for result in results] == [-3.0, -3.0]
    first.leave()
    second.leave()


def test_the_state_is_of_one_version_while_workers_train(connect: Connect, name: str) -> None:
    """Buffers, counts and scalars of all shards, though steps and other states come in between."""
    client = connect(3)
    run = large(client, name, stepd.SGD(lr=0.0, momentum=1.0))
    other = connect(3).run(name)
    done = threading.Event()

    def work() -> None:
        with run.join() as worker:
            while not done.is_set():
                worker.step(ones())

    working = threading.Thread(target=work)
    working.start()
    try:
        seen = set()
        for again in range(30):
            state = other.state_dict()
            values = {float(v) for e in state["state"].values() for v in np.unique(e["momentum_buffer"])}
            assert len(values) <= 1, f"versions are mixed: {values}"
            seen |= values
            if again % 10 == 9:
                other.load_state_dict(state)
    finally:
        done.set()
        working.join(PATIENCE_S)
    assert len(seen) > 3


def test_states_that_are_loaded_at_once_do_not_mix(connect: Connect, name: str) -> None:
    """One is loaded, or both in turn; what lost its place is told so, or its state came first."""
    runs = [large(connect(3), name, stepd.SGD(lr=0.0, momentum=1.0)), connect(3).run(name)]
    base = {"param_groups": [{"params": [0, 1]}]}

    def load(index: int) -> None:
        entry = {i: {"momentum_buffer": np.full(s, index + 1, F4)} for i, s in enumerate(LARGE.values())}
        with contextlib.suppress(stepd.FailedPrecondition):
            runs[index].load_state_dict(base | {"state": entry})

    for _ in range(5):
        threads = [threading.Thread(target=load, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        state = runs[0].state_dict()
        values = {float(v) for e in state["state"].values() for v in np.unique(e["momentum_buffer"])}
        assert len(values) == 1


def test_what_does_not_fit_is_refused_before_anything_is_sent(connect: Connect, name: str) -> None:
    """Errors name parameter and buffer, what was expected and what was given; the run stays as it was."""
    run = large(connect(3), name)
    with run.join() as worker:
        worker.step(ones())
    state = run.state_dict()
    before = pickle.dumps(state)

    def changed(index: int, **values: Any) -> dict[str, Any]:
        entry = {**state["state"][index], **values}
        entry = {key: value for key, value in entry.items() if value is not None}
        return {"state": {**state["state"], index: entry}, "param_groups": state["param_groups"]}

    def grouped(**values: Any) -> dict[str, Any]:
        return {"state": state["state"], "param_groups": [state["param_groups"][0] | values]}

    for wrong, kind, message in (
        (changed(1, exp_avg=np.zeros(3, F4)), stepd.ShapeMismatch, r"'table': 'exp_avg': shape must be .*300.*\(3,\)"),
        (
            changed(0, exp_avg=np.zeros(700)),
            stepd.DtypeMismatch,
            "'bias': 'exp_avg': dtype must be float32, got float64",
        ),
        (
            changed(1, exp_avg_sq=None),
            stepd.InvalidArgument,
            "'table': no 'exp_avg_sq': AdamW .* keeps 'step', 'exp_avg'",
        ),
        (changed(0, square_avg=np.zeros(700, F4)), stepd.InvalidArgument, "'bias': unexpected 'square_avg'"),
        (changed(0, exp_avg=np.full(700, np.nan, F4)), stepd.InvalidArgument, "'bias': 'exp_avg'.* finite, got nan"),
        (changed(0, step=-1.0), stepd.InvalidArgument, "'bias': step must be an integer from 0 .*, got -1"),
        (grouped(params=[0]), stepd.InvalidArgument, "params must be 2 parameters, .* got 1"),
        (grouped(amsgrad=True), stepd.InvalidArgument, "amsgrad=True AdamW keeps .*'max_exp_avg_sq'"),
        (grouped(betas=(0.9, 2.0)), stepd.InvalidArgument, r"betas\[1\] must be in \[0, 1\), got 2.0"),
        (grouped(momentum=0.9), stepd.InvalidArgument, "momentum=0.9 is of another rule, the run has AdamW"),
        (grouped(decoupled_weight_decay=False), stepd.InvalidArgument, "decoupled_weight_decay=False is of another"),
        ({"state": {}, "param_groups": []}, stepd.InvalidArgument, "param_groups must be 1 groups, .* got 0"),
        ({"state": {}}, stepd.InvalidArgument, "form must be a dict"),
        ({**state, "state": {7: {}}}, stepd.InvalidArgument, "state must be one of the indices .*, got 7"),
    ):
        with pytest.raises(kind, match=message):
            run.load_state_dict(wrong)
    assert pickle.dumps(run.state_dict()) == before


def test_parameters_are_matched_by_name_where_the_names_are_the_runs(connect: Connect, name: str) -> None:
    params = {"a": np.zeros(3, F4), "b": np.zeros(3, F4)}
    run = connect(3).create_run(name, params, optimizer=stepd.SGD(lr=1.0, momentum=0.5))
    entries = {0: {"momentum_buffer": np.full(3, 1, F4)}, 1: {"momentum_buffer": np.full(3, 2, F4)}}
    for names, first in ((["b", "a"], 2), (["a", "b"], 1), (["model.b", "model.a"], 1)):
        run.load_state_dict({"state": entries, "param_groups": [{"params": [0, 1], "param_names": names}]})
        assert run.state_dict()["state"][0]["momentum_buffer"][0] == first


def test_a_parameter_that_never_stepped_has_no_entry(connect: Connect, name: str) -> None:
    run = large(connect(3), name)
    assert run.state_dict()["state"] == {}
    with run.join() as worker:
        worker.step({"bias": ones()["bias"]})
    state = run.state_dict()
    assert list(state["state"]) == [0]
    run.load_state_dict({"state": {}, "param_groups": state["param_groups"]})
    assert run.state_dict()["state"] == {}
