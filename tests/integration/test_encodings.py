"""Encoded gradients and parameters against real servers: who sees what, and that training still converges."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import stepd
from stepd.demo import data, model
from stepd.transfer import ShardPush
from stepd.v1 import shard_pb2
from tests.integration.training import at_once

Connect = Callable[..., stepd.Client]
F4 = np.float32
SHAPES: dict[str, tuple[int, ...]] = {"w": (300, 1000), "b": (7,), "s": ()}


def random(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(F4) for name, shape in SHAPES.items()}


def norm_of(arrays: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in arrays.values())))


@pytest.mark.parametrize("transport", ["grpc", "shm"])
@pytest.mark.parametrize("wire", ["bfloat16", "float16", "int8", "topk:0.01"])
def test_the_norm_and_the_step_are_of_what_arrives(connect: Connect, name: str, wire: str, transport: str) -> None:
    params, grads = random(0), random(1)
    run = connect(2, transport=transport).create_run(
        name, params, optimizer=stepd.SGD(1.0), wire=wire, clip=stepd.ClipNorm(1e9)
    )
    with run.join() as worker:
        result = worker.step(grads)
        arrived = {key: params[key] - result.params[key] for key in params}
        owed = worker.error_feedback()
    assert result.grad_norm == pytest.approx(norm_of(arrived), rel=1e-5)
    if wire == "topk:0.01":
        assert 0 < np.count_nonzero(arrived["w"]) <= 0.02 * arrived["w"].size
    else:
        for key, grad in grads.items():
            np.testing.assert_allclose(arrived[key], grad, atol=0.05)
    if wire in ("int8", "topk:0.01"):
        for key, grad in grads.items():
            np.testing.assert_allclose(arrived[key] + owed[key], grad, atol=1e-5)
    else:
        assert owed == {}


def test_rounded_gradients_are_exactly_that(connect: Connect, name: str) -> None:
    params, grads = random(0), random(1)
    zeros = {key: np.zeros_like(value) for key, value in params.items()}
    run = connect(3, transport="grpc").create_run(name, zeros, optimizer=stepd.SGD(1.0), wire="float16")
    with run.join() as worker:
        for key, value in worker.step(grads).params.items():
            np.testing.assert_array_equal(-value, grads[key].astype(np.float16).astype(F4))


def test_parameters_are_rounded_for_workers_only(connect: Connect, name: str) -> None:
    params = random(0)
    wire = stepd.Wire(parameters="float16")
    run = connect(3, transport="grpc").create_run(name, params, optimizer=stepd.SGD(0.0), wire=wire)
    with run.join() as worker:
        for got in (worker.pull(), worker.step(random(1)).params, worker.pull(names=["w"])):
            for key, value in got.items():
                assert value.dtype == F4
                np.testing.assert_array_equal(value, params[key].astype(np.float16).astype(F4))
    for key, value in run.pull().items():
        np.testing.assert_array_equal(value, params[key])


def test_deterministic_runs_have_the_same_bits_on_any_number_of_shards(connect: Connect, name: str) -> None:
    """Of encodings that go by value; scales and the largest go by chunk, and chunks by shard."""
    results = []
    for shards in (1, 3):
        run = connect(shards, transport="grpc").create_run(
            name, random(0), optimizer=stepd.AdamW(0.01), wire="bfloat16", sync=stepd.Sync(deterministic=True)
        )
        with run.join() as worker:
            for step in range(3):
                worker.step(random(step + 1))
            results.append(worker.pull())
    for key in SHAPES:
        np.testing.assert_array_equal(results[0][key], results[1][key])


def test_a_worker_that_takes_over_owes_what_the_other_owed(connect: Connect, name: str) -> None:
    params = random(0)
    run = connect(2).create_run(name, params, optimizer=stepd.SGD(1.0), wire="topk:0.01")
    with run.join(0) as worker:
        worker.step(random(1))
        owed = worker.error_feedback()
    zeros = {key: np.zeros_like(value) for key, value in params.items()}
    with run.join(0, error_feedback=owed) as worker:
        before = worker.pull()
        after = worker.step(zeros).params
        left = worker.error_feedback()
    for key, debt in owed.items():
        np.testing.assert_allclose(before[key] - after[key] + left[key], debt, atol=1e-5)
    assert any((before[key] != after[key]).any() for key in params)


def test_a_wrong_debt_is_refused_before_it_takes_a_place(connect: Connect, name: str) -> None:
    run = connect(2).create_run(f"{name}-a", random(0), optimizer=stepd.SGD(1.0), wire="int8")
    with pytest.raises(stepd.ShapeMismatch, match="'w'"):
        run.join(error_feedback={"w": np.zeros(3, F4)})
    with pytest.raises(stepd.UnknownParameter, match="'v'"):
        run.join(error_feedback={"v": np.zeros(3, F4)})
    plain = connect(2).create_run(f"{name}-b", random(0), optimizer=stepd.SGD(1.0), wire="bfloat16")
    with pytest.raises(stepd.InvalidArgument, match="error_feedback"):
        plain.join(error_feedback=random(0))
    assert run.info().workers == plain.info().workers == []


def test_a_value_that_is_not_finite_is_found_and_not_owed(connect: Connect, name: str) -> None:
    run = connect(2).create_run(name, random(0), optimizer=stepd.SGD(0.1), wire="int8")
    bad = random(1)
    bad["w"][5, 5] = np.inf
    with run.join() as worker:
        assert worker.step(bad).skipped
        result = worker.step(random(2))
        assert not result.skipped
        assert all(np.isfinite(value).all() for value in result.params.values())


def test_a_group_that_is_added_is_encoded_as_well(connect: Connect, name: str) -> None:
    run = connect(2, transport="grpc").create_run(name, random(0), optimizer=stepd.SGD(1.0), wire="int8")
    new = np.ones((500, 300), F4)
    with run.join() as worker:
        worker.step(random(1))
        run.add_param_group(stepd.ParamGroup({"new": new}))
        result = worker.step(random(2) | {"new": new})
        assert set(worker.error_feedback()) == {*SHAPES, "new"}
    np.testing.assert_array_equal(result.params["new"], np.zeros_like(new))  # 1 is a multiple of a power of two


@pytest.mark.parametrize(
    ("wire", "share", "loss"),
    [
        pytest.param("float32", 1.0, 0.2, marks=pytest.mark.slow),
        ("bfloat16", 0.5, 0.2),
        pytest.param("float16", 0.5, 0.2, marks=pytest.mark.slow),
        ("int8", 0.26, 0.2),
        ("topk:0.01", 0.03, 0.5),
    ],
)
def test_training_converges(
    connect: Connect, name: str, sent: Callable[[], int], wire: str, share: float, loss: float
) -> None:
    """The demo's problem: near what it comes to without, with so many of the bytes."""
    digits = data.load()
    run = connect(2, transport="grpc").create_run(
        name, model.initial(), optimizer=stepd.AdamW(3e-3), wire=wire, clip=stepd.ClipNorm(1.0)
    )
    before, steps = sent(), 60

    def work(rank: int) -> float:
        examples = data.share(digits.train, rank, 2)
        with run.join(rank) as worker:
            params = worker.pull()
            for step in range(steps):
                params = worker.step(model.loss(params, data.batch(examples, step, 64, rank)).grads).params
            return model.loss(params, digits.held_out).value

    losses = at_once(work, 2)
    assert max(losses) < loss
    floats = sum(array.size for array in model.initial().values())
    assert sent() - before < share * 4 * floats * steps * 2 * 1.05


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Bytes of gradients that workers of this process have given to gRPC."""
    total = 0
    messages = ShardPush.messages

    def counted(*arguments: Any) -> Iterator[bytes]:
        nonlocal total
        for message in messages(*arguments):
            total += len(message)
            yield message

    monkeypatch.setattr(ShardPush, "messages", counted)
    return lambda: total


def test_every_encoding_has_its_form() -> None:
    """What the tests above go through is all there is."""
    forms = shard_pb2.EncodedChunk.DESCRIPTOR.oneofs_by_name["values"].fields
    assert {field.name for field in forms} == {"bfloat16", "float16", "int8", "sparse"}
