"""What a worker does and gets, against real servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import stepd
from tests.integration.training import at_once

Connect = Callable[..., stepd.Client]

F4 = np.float32
LR = 0.5


def ramp(*shape: int, dtype: Any = F4) -> np.ndarray:
    return np.arange(1, 1 + int(np.prod(shape)), dtype=dtype).reshape(shape)


def odd_arrays() -> dict[str, np.ndarray]:
    """Arrays as users have them."""
    return {
        "fortran": np.asfortranarray(ramp(5, 7)),
        "strided": ramp(10, 6)[::2, 1::2],
        "reversed": ramp(9)[::-1],
        "transposed": ramp(3, 4, 5).transpose(2, 0, 1),
        "swapped": ramp(4, 4).astype(">f4"),
        "scalar": np.array(3.5, F4),
        "empty": np.zeros((0, 3), F4),
        "readonly": np.broadcast_to(np.array(2.0, F4), (6,)),
        "misaligned": np.frombuffer(bytes(1) + ramp(8).tobytes(), F4, offset=1),
    }


@pytest.mark.parametrize("shards", [1, 3])
def test_arrays_in_any_memory_order_and_byte_order(connect: Connect, name: str, shards: int) -> None:
    given = odd_arrays()
    run = connect(shards).create_run(name, given, optimizer=stepd.SGD(lr=LR))
    with run.join() as worker:
        pulled = worker.pull()
        assert list(pulled) == list(given)
        for key, array in pulled.items():
            assert array.shape == given[key].shape
            assert array.dtype == F4
            assert array.dtype.isnative
            np.testing.assert_array_equal(array, given[key])
        result = worker.step(given)
        for key, array in result.params.items():
            np.testing.assert_array_equal(array, given[key] * F4(1 - LR))


def test_each_dtype_comes_back_as_itself(client: stepd.Client, name: str) -> None:
    given = {
        "half": ramp(5, dtype=np.float16),
        "brain": ramp(5).astype(ml_dtypes.bfloat16),
        "single": ramp(5),
    }
    run = client.create_run(name, given, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        assert {key: array.dtype for key, array in worker.pull().items()} == {k: a.dtype for k, a in given.items()}
        # A thousand steps too small for 16 bits add up in the 32-bit master.
        small = {key: np.full(5, 2**-13, F4) for key in given}
        for _ in range(8):
            worker.step(small)
        params = worker.pull()
        np.testing.assert_array_equal(params["single"], given["single"] - 2**-10)
        np.testing.assert_array_equal(worker.pull(dtype=F4)["brain"], given["single"] - 2**-10)
        assert all(array.dtype == np.float64 for array in run.pull(dtype="float64").values())


def test_one_double_makes_the_run_double(client: stepd.Client, name: str) -> None:
    given = {"double": ramp(5, dtype=np.float64), "single": ramp(5)}
    run = client.create_run(name, given, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        params = worker.step({"double": np.full(5, 1e-12), "single": np.ones(5, F4)}).params
        assert params["single"].dtype == F4
        np.testing.assert_array_equal(params["double"], given["double"] - 1e-12)


def test_what_is_left_out_stays_as_it_is(client: stepd.Client, name: str) -> None:
    given = {"a": ramp(3), "b": ramp(3), "c": ramp(3)}
    run = client.create_run(name, given, optimizer=stepd.AdamW(lr=0.1))
    with run.join() as worker:
        params = worker.step({"a": np.ones(3, F4), "b": None}).params
        np.testing.assert_array_equal(params["b"], given["b"])
        np.testing.assert_array_equal(params["c"], given["c"])
        assert (params["a"] != given["a"]).all()
        assert worker.step({}).step == 2


def test_a_run_may_insist_on_whole_contributions(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"a": ramp(3), "b": ramp(3)}, optimizer=stepd.SGD(lr=0.1), missing="error")
    with run.join() as worker:
        for call in (worker.step, worker.push, worker.accumulate):
            with pytest.raises(stepd.MissingGradient, match="no gradient for parameter 'b'"):
                call({"a": ramp(3)})
        assert worker.step({"a": ramp(3), "b": ramp(3)}).step == 1


@pytest.mark.parametrize(
    ("reduce", "expected"), [("mean", (2 + 6) / 2), ("sum", 2 + 6), ("weighted", (1 * 2 + 3 * 6) / 4)]
)
def test_contributions_are_reduced_as_the_run_says(
    client: stepd.Client, name: str, reduce: Any, expected: float
) -> None:
    run = client.create_run(
        name, {"w": np.zeros(4, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(2, reduce=reduce)
    )

    def work(rank: int) -> stepd.StepResult:
        with run.join(rank) as worker:
            return worker.step({"w": np.full(4, (2.0, 6.0)[rank], F4)}, weight=(1.0, 3.0)[rank])

    for result in at_once(work, 2):
        np.testing.assert_array_equal(result.params["w"], np.full(4, -expected, F4))
        assert result.receipt.status == "accepted"


# --- Non-finite -----------------------------------------------------------------------------------------------------


def poisoned(client: stepd.Client, name: str, on_nonfinite: Any, bad: float = np.nan) -> list[Any]:
    """Two workers, two steps; in the first, rank 1 sends a value that is not finite. What each got in both."""
    run = client.create_run(
        name,
        {"w": np.zeros(200_000, F4), "b": np.zeros(3, F4)},
        optimizer=stepd.SGD(lr=1.0),
        sync=stepd.Sync(workers=2),
        on_nonfinite=on_nonfinite,
    )

    def work(rank: int) -> list[Any]:
        with run.join(rank, name=f"w{rank}") as worker:
            grads = {"w": np.ones(200_000, F4), "b": np.ones(3, F4)}
            first = {**grads, "b": np.array([1, bad, 1], F4)} if rank == 1 else grads
            got: list[Any] = []
            for sent in (first, grads):
                try:
                    got.append(worker.step(sent))
                except stepd.NonFiniteGradient as error:
                    got.append(error)
            return got

    return at_once(work, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_with_a_value_that_is_not_finite_is_skipped(client: stepd.Client, name: str, bad: float) -> None:
    for first, second in poisoned(client, name, "skip", bad):
        assert first.skipped
        assert first.step == 0
        assert not first.params["w"].any()
        assert not second.skipped
        assert second.step == 1
        assert (second.params["w"] == -1).all()


def test_a_contribution_that_is_not_finite_is_quarantined(client: stepd.Client, name: str) -> None:
    (good, good_next), (bad, bad_next) = poisoned(client, name, "quarantine")
    assert good.receipt.status == "accepted"
    assert bad.receipt.status == "quarantined"
    for result in (good, bad):
        assert not result.skipped
        assert result.step == 1
        assert (result.params["w"] == -1).all(), "the mean of the others"
    for result in (good_next, bad_next):
        assert result.receipt.status == "accepted"
        assert (result.params["w"] == -2).all()


def test_a_step_that_is_not_finite_fails_for_every_worker(client: stepd.Client, name: str) -> None:
    for first, second in poisoned(client, name, "error"):
        assert isinstance(first, stepd.NonFiniteGradient)
        assert first.reason == "NONFINITE_GRADIENT"
        assert "worker 'w1' (rank 1) in parameter 'b'" in str(first)
        assert (first.details["workers"], first.details["parameters"]) == (["w1"], ["b"])
        assert second.step == 1, "the run has stayed at its step and goes on"


# --- Push and pull --------------------------------------------------------------------------------------------------


def test_a_pull_sees_what_the_same_worker_has_pushed(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(300_000, F4)}, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        grad = np.ones(300_000, F4)
        for step in range(1, 6):
            receipt = worker.push({"w": grad})
            grad *= 1  # the array is the caller's again
            assert receipt.status == "accepted"
            assert receipt.counts
            assert receipt.round == step - 1
            assert (worker.pull()["w"] == -step).all()
        for _ in range(3):
            worker.push({"w": grad})
        assert (worker.pull()["w"] == -8).all()
        assert worker.step({"w": grad}).step == 9


def test_a_pushed_array_may_be_changed_at_once(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(10, F4)}, optimizer=stepd.SGD(lr=1.0), sync=stepd.Sync(workers=2))

    def work(rank: int) -> np.ndarray:
        with run.join(rank) as worker:
            grad = np.ones(10, F4)
            worker.push({"w": grad})
            grad[:] = np.nan
            return worker.pull()["w"]

    for params in at_once(work, 2):
        assert (params == -1).all()


def test_a_result_is_never_written_to_again(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(100_000, F4), "b": np.zeros((), F4)}, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        kept = [worker.pull()] + [worker.step({"w": np.ones(100_000, F4)}).params for _ in range(6)]
        for step, params in enumerate(kept):
            assert (params["w"] == -step).all()
        part = kept[3]["w"][5:10]
        del kept, params
        for _ in range(4):
            worker.step({"w": np.ones(100_000, F4)})
        assert (part == -3).all()


def test_parts_of_the_parameters_can_be_pulled(client: stepd.Client, name: str) -> None:
    given = {"a": ramp(100_000), "b": ramp(3), "empty": np.zeros((2, 0), F4), "c": ramp(5, 5)}
    run = client.create_run(name, given, optimizer=stepd.SGD(lr=0.1))
    with run.join() as worker:
        part = worker.pull(names=["c", "empty", "b"], dtype=np.float16)
        assert list(part) == ["b", "empty", "c"]
        for key, array in part.items():
            assert array.dtype == np.float16
            np.testing.assert_array_equal(array, given[key].astype(np.float16))
        assert worker.pull(names=["empty"])["empty"].shape == (2, 0)
        assert worker.pull(names=[]) == {}


def test_pulls_go_into_arrays_of_the_users(client: stepd.Client, name: str) -> None:
    given = {"a": ramp(6, 4), "b": ramp(70_000), "s": np.array(2, F4)}
    run = client.create_run(name, given, optimizer=stepd.SGD(lr=0.1))
    with run.join() as worker:
        out = {"a": np.empty((4, 6), F4).T, "b": np.empty(70_000, F4), "s": np.empty((), F4)}
        result = worker.pull(out=out)
        for key, array in result.items():
            assert array is out[key]
            np.testing.assert_array_equal(array, given[key])
        wide = {"b": np.empty(70_000, np.float64)}
        assert list(worker.pull(out=wide, dtype=np.float64)) == ["b"]
        np.testing.assert_array_equal(wide["b"], given["b"])


def test_micro_batches_are_averaged(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(3, F4), "v": np.zeros(3, F4)}, optimizer=stepd.SGD(lr=1.0))
    with run.join() as worker:
        grad = np.ones(3, F4)
        worker.accumulate({"w": grad, "v": grad})
        grad *= 5
        worker.accumulate({"w": grad})
        params = worker.step().params
        np.testing.assert_array_equal(params["w"], np.full(3, -3, F4))
        np.testing.assert_array_equal(params["v"], np.full(3, -0.5, F4))
        worker.accumulate({"w": grad})
        worker.zero_grad()
        with pytest.raises(stepd.InvalidArgument, match="nothing to send"):
            worker.step()
        worker.accumulate({"w": np.full(3, 1, F4)})
        result = worker.step({"w": np.full(3, 2, F4)})
        np.testing.assert_array_equal(result.params["w"], np.full(3, -4.5, F4))
