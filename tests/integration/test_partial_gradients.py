"""Contributions that hold a part: micro-batches, and parameters without a gradient."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import stepd
from tests.integration.training import at_once

F4 = np.float32
Arrays = dict[str, np.ndarray]
Connect = Callable[..., stepd.Client]


def noise(seed: int, *names: str) -> Arrays:
    """One of the tensors lies on all shards."""
    shapes = {"wide": (300, 700), "b": (7,), "scalar": ()}
    rng = np.random.default_rng(seed)
    every = {name: np.asarray(rng.standard_normal(shape), F4) for name, shape in shapes.items()}
    return {name: every[name] for name in names or every}


def test_what_nobody_has_a_gradient_for_stays(connect: Connect, name: str) -> None:
    """Value, buffers and count, in spite of decay and momentum; what one of two sent is halved by the mean."""
    client = connect()
    rule = stepd.AdamW(lr=0.1, weight_decay=0.1)
    run = client.create_run(name, noise(0), optimizer=rule, sync=stepd.Sync(workers=2, deterministic=True))
    rounds = [({"b"}, {"b", "scalar"}), (set(), {"b"}), ({"wide", "b"}, set()), ({"wide", "scalar"}, {"wide"})]

    def work(rank: int) -> list[Arrays]:
        with run.join(rank) as worker:
            seen = []
            for step, names in enumerate(rounds):
                grads = {key: value if key in names[rank] else None for key, value in noise(step + 1).items()}
                seen.append({key: value.copy() for key, value in worker.step(grads).params.items()})
            return seen

    together, _ = at_once(work, 2)
    # Each parameter alone, in a run that has only the steps in which it got a gradient.
    for key, initial in noise(0).items():
        alone = client.create_run(f"{name}-{key}", {key: initial}, optimizer=rule)
        expected = initial
        with alone.join() as worker:
            for step, (names, params) in enumerate(zip(rounds, together, strict=True)):
                count = sum(key in each for each in names)
                if count:
                    grad = noise(step + 1)[key]
                    expected = worker.step({key: (grad + grad if count == 2 else grad) * F4(0.5)}).params[key]
                assert params[key].tobytes() == expected.tobytes(), (key, step)


def test_a_step_without_any_gradient_changes_nothing(client: stepd.Client, name: str) -> None:
    """But it is a step: it has a number, and the schedule goes on."""
    schedule = stepd.Warmup(4)
    run = client.create_run(name, noise(0), optimizer=stepd.AdamW(lr=0.1), schedule=schedule)
    with run.join() as worker:
        results = [worker.step({}), worker.step(dict.fromkeys(noise(0)))]
        assert [(result.step, result.grad_norm, result.skipped) for result in results] == [(1, 0, False), (2, 0, False)]
        assert [result.lr for result in results] == [[0.025], [0.05]]
        for key, value in results[-1].params.items():
            assert value.tobytes() == noise(0)[key].tobytes()


def test_a_whole_contribution_is_asked_for(client: stepd.Client, name: str) -> None:
    """The error names the parameter; nothing has been sent, and a whole one is taken afterwards."""
    run = client.create_run(name, noise(0), optimizer=stepd.SGD(lr=1.0), missing="error")
    with run.join() as worker:
        for grads in (noise(1, "wide", "b"), noise(1) | {"scalar": None}):
            with pytest.raises(stepd.MissingGradient, match="'scalar'") as caught:
                worker.step(grads)
            assert caught.value.details["parameter"] == "scalar"
        assert run.step_count == 0
        assert worker.step(noise(1)).step == 1


def test_micro_batches_of_several_workers(connect: Connect, name: str) -> None:
    """Each worker's mean counts once, however many micro-batches it is of."""
    run = connect().create_run(name, {"w": np.zeros(3, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))

    def work(rank: int) -> Arrays:
        with run.join(rank) as worker:
            for value in ([1, 2, 6], [5])[rank]:
                worker.accumulate({"w": np.full(3, value, F4)})
            return {key: value.copy() for key, value in worker.step().params.items()}

    for params in at_once(work, 2):
        np.testing.assert_array_equal(params["w"], np.full(3, -(3 + 5) / 2, F4))


def test_a_mistake_does_not_cost_what_was_accumulated(client: stepd.Client, name: str) -> None:
    """A wrong shape, name or weight is refused, and the sum is what it was."""
    run = client.create_run(name, noise(0), optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        worker.accumulate({"b": np.full(7, 2, F4)})
        for wrong in ({"b": np.ones(7, F4), "scalar": np.ones(3, F4)}, {"b": np.ones(7, F4), "c": np.ones(7, F4)}):
            with pytest.raises(stepd.InvalidArgument):
                worker.accumulate(wrong)
            with pytest.raises(stepd.InvalidArgument):
                worker.step(wrong)
        with pytest.raises(stepd.InvalidArgument, match="weight"):
            worker.step(weight=-1.0)
        params = worker.step().params
        np.testing.assert_array_equal(params["b"], noise(0)["b"] - 2)
        assert params["wide"].tobytes() == noise(0)["wide"].tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_micro_batches_of_16_bits_are_summed_in_32(client: stepd.Client, name: str, dtype: type) -> None:
    """1 + 1/4096 is 1 in either type."""
    run = client.create_run(name, {"w": np.zeros(3, dtype)}, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        worker.accumulate({"w": np.ones(3, dtype)})
        worker.accumulate({"w": np.full(3, 1 / 4096, dtype)})
        worker.step()
        np.testing.assert_array_equal(worker.pull(dtype=F4)["w"], np.full(3, -(1 + 1 / 4096) / 2, F4))
