"""Bad input gets the error of its class, with the thing and both values in it; and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepd

F4 = np.float32
GOOD = {"w": np.ones((2, 3), F4), "b": np.ones(3, F4)}


@pytest.fixture
def run(client: stepd.Client, name: str) -> stepd.Run:
    return client.create_run(name, GOOD, optimizer=stepd.SGD(lr=0.5))


GRADIENTS = [
    ({"w": np.ones((3, 2), F4)}, stepd.ShapeMismatch, ["'w'", "(2, 3)", "(3, 2)"]),
    ({"w": np.ones(6, F4)}, stepd.ShapeMismatch, ["'w'", "(2, 3)", "(6,)"]),
    ({"b": np.ones((), F4)}, stepd.ShapeMismatch, ["'b'", "(3,)", "()"]),
    ({"w": np.ones((2, 3))}, stepd.DtypeMismatch, ["'w'", "float32", "float64"]),
    ({"w": np.ones((2, 3), np.int32)}, stepd.DtypeMismatch, ["'w'", "float32", "int32"]),
    ({"w": np.ones((2, 3), np.complex64)}, stepd.DtypeMismatch, ["'w'", "float32", "complex64"]),
    ({"w": np.array([[{}, 1, 2], [3, 4, 5]], object)}, stepd.DtypeMismatch, ["'w'", "float32", "object"]),
    ({"w": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}, stepd.DtypeMismatch, ["'w'", "float32", "list"]),
    ({"weight": np.ones((2, 3), F4)}, stepd.UnknownParameter, ["'weight'", "'w'", "'b'"]),
    ([np.ones(3, F4)], stepd.InvalidArgument, ["mapping"]),
]


@pytest.mark.parametrize(("grads", "kind", "texts"), GRADIENTS)
def test_a_wrong_gradient_is_refused_by_name(
    run: stepd.Run, grads: Any, kind: type[stepd.StepdError], texts: list[str]
) -> None:
    with run.join() as worker:
        for call in (worker.step, worker.push, worker.accumulate):
            with pytest.raises(kind) as caught:
                call(grads)
            assert isinstance(caught.value, ValueError)
            assert all(text in str(caught.value) for text in texts), str(caught.value)
        assert worker.step(GOOD).step == 1, "the run goes on"


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "heavy", None])
def test_a_weight_must_be_positive(run: stepd.Run, weight: Any) -> None:
    with run.join() as worker:
        with pytest.raises(stepd.InvalidArgument, match="weight must be a positive finite number, got"):
            worker.step(GOOD, weight=weight)
        assert worker.step(GOOD).step == 1


@pytest.mark.parametrize(
    ("options", "kind", "texts"),
    [
        ({"names": ["w", "nope"]}, stepd.UnknownParameter, ["'nope'"]),
        ({"names": "w"}, stepd.InvalidArgument, ["names"]),
        ({"dtype": np.int64}, stepd.DtypeMismatch, ["float32", "int64"]),
        ({"dtype": "double-ish"}, stepd.DtypeMismatch, ["float32", "double-ish"]),
        ({"out": {"w": np.ones((3, 2), F4)}}, stepd.ShapeMismatch, ["'w'", "(2, 3)", "(3, 2)"]),
        ({"out": {"w": np.ones((2, 3))}}, stepd.DtypeMismatch, ["'w'", "float32", "float64"]),
        ({"out": {"w": np.ones((2, 3), ">f4")}}, stepd.DtypeMismatch, ["'w'", "float32", ">f4"]),
        ({"out": {"w": [1.0]}}, stepd.InvalidArgument, ["'w'", "numpy.ndarray", "list"]),
        ({"out": {"v": np.ones(3, F4)}}, stepd.UnknownParameter, ["'v'"]),
        ({"out": {"w": np.ones((2, 3), F4)}, "names": ["b"]}, stepd.InvalidArgument, ["'b'"]),
        ({"out": {"b": np.broadcast_to(np.ones((), F4), (3,))}}, stepd.InvalidArgument, ["'b'", "writeable"]),
    ],
)
def test_a_wrong_pull_is_refused_by_name(
    run: stepd.Run, options: Any, kind: type[stepd.StepdError], texts: list[str]
) -> None:
    with run.join() as worker:
        with pytest.raises(kind) as caught:
            worker.pull(**options)
        assert all(text in str(caught.value) for text in texts), str(caught.value)
        assert set(worker.pull()) == {"w", "b"}


@pytest.mark.parametrize("bad", ["a/b", "a.b", "../up", "", "-a", "a b", "x" * 129, "ä", "a\n", None, 3])
def test_names_of_runs_are_checked(client: stepd.Client, bad: Any) -> None:
    with pytest.raises(stepd.InvalidArgument, match="name must be") as caught:
        client.create_run(bad, GOOD, optimizer=stepd.SGD(lr=0.5))
    assert "got" in str(caught.value)
    with pytest.raises(stepd.InvalidArgument):
        client.run(bad)


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "nan at index (1, 2)"), (np.inf, "inf at index (1, 2)"), (-np.inf, "-inf at")]
)
def test_initial_parameters_must_be_finite(client: stepd.Client, name: str, value: float, text: str) -> None:
    bad = GOOD["w"].copy()
    bad[1, 2] = value
    with pytest.raises(stepd.InvalidArgument) as caught:
        client.create_run(name, {**GOOD, "w": bad}, optimizer=stepd.SGD(lr=0.5))
    assert caught.value.reason == "NONFINITE_PARAMETER"
    assert "'w'" in str(caught.value)
    assert text in str(caught.value)
    client.create_run(name, GOOD, optimizer=stepd.SGD(lr=0.5)).delete()


@pytest.mark.parametrize(
    ("make", "texts"),
    [
        (lambda: stepd.SGD(lr=-1), ["lr", "-1"]),
        (lambda: stepd.SGD(lr=float("nan")), ["lr", "nan"]),
        (lambda: stepd.AdamW(lr=1e-3, betas=(0.9, 1.0)), ["betas[1]", "1.0"]),
        (lambda: stepd.Adam(lr=1e-3, eps=-1e-8), ["eps", "-1e-08"]),
        (lambda: stepd.ClipNorm(0), ["max_norm", "0"]),
        (lambda: stepd.ClipNorm(-1), ["max_norm", "-1"]),
        (lambda: stepd.ClipValue(float("nan")), ["max_value", "nan"]),
        (lambda: stepd.Cosine(total_steps=0), ["total_steps", "0"]),
        (lambda: stepd.Warmup(-5), ["warmup_steps", "-5"]),
        (lambda: stepd.Sync(workers=0), ["workers", "0"]),
        (lambda: stepd.Sync(reduce="median"), ["reduce", "'median'"]),
        (lambda: stepd.ParamGroup(GOOD, optimizer=stepd.SGD(lr=1), rate=3), ["'rate'"]),
    ],
)
def test_impossible_hyperparameters_are_refused_with_their_values(make: Callable[[], object], texts: list[str]) -> None:
    with pytest.raises(stepd.InvalidArgument) as caught:
        make()
    assert all(text in str(caught.value) for text in texts), str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "texts"),
    [
        ({"params": {}}, stepd.InvalidArgument, ["at least one parameter"]),
        ({"params": {"w": np.ones(3, np.int64)}}, stepd.DtypeMismatch, ["'w'", "int64"]),
        ({"params": {"w": [1.0]}}, stepd.DtypeMismatch, ["'w'", "list"]),
        ({"params": {"": np.ones(3, F4)}}, stepd.InvalidArgument, ["name"]),
        (
            {"params": [stepd.ParamGroup({"w": np.ones(1, F4)}), stepd.ParamGroup({"w": np.ones(1, F4)})]},
            stepd.OverlappingGroups,
            ["'w'", "0", "1"],
        ),
        ({"optimizer": "adamw"}, stepd.InvalidArgument, ["optimizer", "'adamw'"]),
        ({"schedule": 3}, stepd.InvalidArgument, ["schedule", "3"]),
        ({"clip": 1.0}, stepd.InvalidArgument, ["clip", "1.0"]),
        ({"sync": 2}, stepd.InvalidArgument, ["sync", "2"]),
        ({"on_nonfinite": "ignore"}, stepd.InvalidArgument, ["on_nonfinite", "'ignore'", "'skip'"]),
        ({"missing": "zero"}, stepd.InvalidArgument, ["missing", "'zero'", "'skip'"]),
        ({"wire": "int4"}, stepd.InvalidArgument, ["Wire", "'int4'", "float32"]),
        ({"wire": "topk:2"}, stepd.InvalidArgument, ["Wire", "'topk:2'", "topk:0.01"]),
        ({"wire": 8}, stepd.InvalidArgument, ["wire", "8", "stepd.Wire"]),
        ({"params": {"w": np.ones(3)}, "wire": "int8"}, stepd.InvalidArgument, ["wire", "int8", "float64"]),
        ({"average": 0.99}, stepd.InvalidArgument, ["average", "0.99", "stepd.EMA"]),
    ],
)
def test_an_impossible_run_is_refused(
    client: stepd.Client, name: str, options: dict[str, Any], kind: type[stepd.StepdError], texts: list[str]
) -> None:
    arguments = {"params": GOOD, "optimizer": stepd.SGD(lr=0.5), **options}
    with pytest.raises(kind) as caught:
        client.create_run(name, arguments.pop("params"), **arguments)
    assert all(text in str(caught.value) for text in texts), str(caught.value)
    with pytest.raises(stepd.NotFound):
        client.run(name)


@pytest.mark.parametrize(
    "options",
    [
        {"rank": -1},
        {"rank": "first"},
        {"name": ""},
        {"name": "a/b"},
        {"name": "x" * 129},
        {"lease": 0.5},
        {"lease": 1e5},
    ],
)
def test_a_wrong_join_is_refused(run: stepd.Run, options: dict[str, Any]) -> None:
    with pytest.raises(stepd.InvalidArgument) as caught:
        run.join(**options)
    assert next(iter(options)) in str(caught.value)
    assert run.info().workers == []


def test_a_run_that_does_not_exist_is_not_found(client: stepd.Client) -> None:
    with pytest.raises(stepd.NotFound, match="no-such-run") as caught:
        client.run("no-such-run")
    assert caught.value.reason == "RUN_NOT_FOUND"


def test_what_this_version_does_not_have_says_so(run: stepd.Run) -> None:
    with pytest.raises(stepd.InvalidArgument, match="averaged must be True or False, got 1"):
        run.pull(averaged=1)
    with pytest.raises(stepd.InvalidArgument, match="clip"):
        run.update(clip=1.0)
    with pytest.raises(stepd.InvalidArgument, match="schedule"):
        run.update(schedule="cosine")
