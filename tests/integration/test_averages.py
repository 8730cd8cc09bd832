"""Averages through a real fleet."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import stepd
from stepd.limits import BLOCK_ELEMENTS
from stepd.parameters import ParamGroup

Arrays = dict[str, np.ndarray]


def params() -> Arrays:
    rng = np.random.default_rng(0)
    return {"w": rng.standard_normal((300, 700)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}


def gradient(step: int) -> Arrays:
    """`b` has none in every second step."""
    rng = np.random.default_rng(step + 1)
    grads = {"w": rng.standard_normal((300, 700)).astype(np.float32), "b": rng.standard_normal(7).astype(np.float32)}
    return grads if step % 2 else {"w": grads["w"]}


@pytest.mark.parametrize(
    ("average", "counted"),
    [(stepd.EMA(0.5), (1, 2, 3, 4, 5, 6)), (stepd.SWA(start=2, every=2), (2, 4, 6)), (stepd.SWA(9), ())],
    ids=repr,
)
def test_averages_over_steps(
    client: stepd.Client, name: str, average: stepd.EMA | stepd.SWA, counted: tuple[int, ...]
) -> None:
    """Of all parameters, from the first step that counts; what is trained is not changed by it, and readers see it."""
    run = client.create_run(name, params(), optimizer=stepd.SGD(lr=0.1, momentum=0.9), average=average)
    plain = client.create_run(f"{name}-plain", params(), optimizer=stepd.SGD(lr=0.1, momentum=0.9))
    with run.join() as worker, plain.join() as other:
        means, expected = Arrays(), Arrays()
        for step in range(6):
            result = worker.step(gradient(step))
            expected = other.step(gradient(step)).params
            assert all(result.params[key].tobytes() == value.tobytes() for key, value in expected.items())
            if step + 1 in counted:
                share = np.float32(average.share(counted.index(step + 1)))
                means = {k: means[k] + (p - means[k]) * share if means else p.copy() for k, p in expected.items()}
            for key, value in client.run(name).pull(averaged=True).items():
                assert value.tobytes() == (means or expected)[key].tobytes(), key
        worker.step({"w": np.full((300, 700), np.nan, np.float32)})
        for key, value in run.pull(averaged=True).items():
            assert value.tobytes() == (means or expected)[key].tobytes(), "a step that is skipped does not count"
    size = sum(value.nbytes for value in params().values())
    # And each of the three shards has room for what a step overwrites of the average: one block.
    assert run.info().bytes - plain.info().bytes == size + 3 * BLOCK_ELEMENTS * 4


def test_sixteen_bits_and_casts(client: stepd.Client, name: str) -> None:
    """Averages are cast as parameters are, from 32-bit ones."""
    half = {"w": np.ones(5, ml_dtypes.bfloat16)}
    run = client.create_run(name, half, optimizer=stepd.SGD(lr=1.0), average=stepd.SWA(1))
    with run.join() as worker:
        for _ in range(2):
            worker.step({"w": np.full(5, 1 / 64, np.float32)})
    assert run.pull(averaged=True)["w"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(run.pull(averaged=True, dtype=np.float32)["w"], np.full(5, 1 - 3 / 128, np.float32))


def test_rules_with_averages_of_their_own(client: stepd.Client, name: str) -> None:
    """Are asked where the run keeps none; groups of other rules give their parameters."""
    groups = [
        ParamGroup({"w": params()["w"]}),
        ParamGroup({"b": params()["b"]}, optimizer=stepd.SGD(lr=0.1)),
    ]
    run = client.create_run(name, groups, optimizer=stepd.ASGD(lr=0.1, t0=0))
    with run.join() as worker:
        seen = []
        for step in range(4):
            grads = gradient(step)
            seen.append({key: value.copy() for key, value in worker.step(grads).params.items()})
    averaged = run.pull(averaged=True)
    # As torch's: the first average is a copy, and with t0=0 the second weighs as much as all before it.
    first, second, third, fourth = (each["w"].astype(np.float64) for each in seen)
    mean = second  # mu is 1 in the first two steps
    mean = mean + (third - mean) / 2
    mean = mean + (fourth - mean) / 3
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(averaged["w"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(averaged["b"], seen[-1]["b"])


def test_without_averages_there_are_none(client: stepd.Client, name: str) -> None:
    """Said by the server, in a sentence."""
    run = client.create_run(name, params(), optimizer=stepd.AdamW())
    with pytest.raises(stepd.FailedPrecondition, match="has no averages") as caught:
        run.pull(averaged=True)
    assert caught.value.reason == "NO_AVERAGE"
    assert "AdamW" in str(caught.value)
