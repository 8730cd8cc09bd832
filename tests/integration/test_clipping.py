"""Clipping from outside: any norm, values, both in order, and limits that change while workers train."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import stepd
from tests.integration.training import Arrays

Connect = Callable[..., stepd.Client]

SHAPES = {"w": (300, 400), "b": (7,), "scalar": ()}


def gradient(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def norm(grads: Arrays, p: float) -> float:
    flat = np.abs(np.concatenate([np.ravel(grad) for grad in grads.values()]))
    return float(flat.max()) if math.isinf(p) else float(np.sum(flat**p) ** (1 / p))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf, 3.0])
@pytest.mark.parametrize("value", [None, 0.75])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_gradient_is_clipped_as_torch_would(
    connect: Connect, name: str, shards: int, value: float | None, p: float
) -> None:
    """The value first, then the norm of what is left, which is reported as it was before its clip."""
    zeros = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    limit = 0.5 * norm(gradient(0), p)
    clip = stepd.Clip(norm=stepd.ClipNorm(limit, p), value=value) if value else stepd.ClipNorm(limit, p)
    run = connect(shards).create_run(name, zeros, optimizer=stepd.SGD(lr=1.0), clip=clip)
    assert run.info().clip == clip
    expected = zeros
    with run.join() as worker:
        for seed in range(3):
            grads = gradient(seed)
            result = worker.step(grads)
            if value:
                grads = {key: grad.clip(-value, value) for key, grad in grads.items()}
            total = norm(grads, p)
            scale = min(1.0, limit / (total + 1e-6))
            assert result.grad_norm == pytest.approx(total, rel=1e-12)
            assert result.clip_scale == pytest.approx(scale, rel=1e-12)
            expected = {key: before - scale * grads[key] for key, before in expected.items()}
    params = run.pull()
    for key, after in expected.items():
        np.testing.assert_allclose(params[key], after, rtol=1e-12, atol=1e-12)
    run.delete()


def test_values_alone_are_clipped(client: stepd.Client, name: str) -> None:
    run = client.create_run(name, {"w": np.zeros(3)}, optimizer=stepd.SGD(lr=1.0), clip=stepd.ClipValue(0.5))
    with run.join() as worker:
        result = worker.step({"w": np.array([3.0, -0.25, -7.0])})
    np.testing.assert_array_equal(result.params["w"], [-0.5, 0.25, 0.5])
    assert (result.grad_norm, result.clip_scale) == (0.75, 1.0)


def test_limits_change_on_a_live_run(client: stepd.Client, name: str) -> None:
    """The norm's limit, its kind, a limit of values, none at all: each from the next decision on."""
    run = client.create_run(name, {"w": np.zeros(2)}, optimizer=stepd.SGD(lr=1.0), clip=stepd.ClipNorm(1.0))
    changes: list[tuple[stepd.ClipNorm | stepd.Clip | stepd.ClipValue | None, float, list[float]]] = [
        (stepd.ClipNorm(1.0), 5.0, [0.6, 0.8]),
        (stepd.ClipNorm(2.5), 5.0, [1.5, 2.0]),
        (stepd.ClipNorm(3.5, 1.0), 7.0, [1.5, 2.0]),
        (stepd.ClipNorm(2.0, math.inf), 4.0, [1.5, 2.0]),
        (stepd.Clip(norm=2.5, value=3.0), math.sqrt(18), [2.5 / math.sqrt(2)] * 2),
        (stepd.ClipValue(3.5), math.hypot(3.0, 3.5), [3.0, 3.5]),
        (None, 5.0, [3.0, 4.0]),
    ]
    before = np.zeros(2)
    with run.join() as worker:
        for clip, total, moved in changes:
            run.update(clip=clip)
            assert run.info().clip == clip
            result = worker.step({"w": np.array([3.0, 4.0])})
            assert result.grad_norm == pytest.approx(total, rel=1e-15)
            np.testing.assert_allclose(before - result.params["w"], moved, rtol=1e-6)
            before = result.params["w"].copy()
        with pytest.raises(stepd.InvalidArgument, match="max_norm"):
            run.update(clip=stepd.ClipNorm(-1.0))
