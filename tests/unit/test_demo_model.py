"""The demo's network: its gradient is the one of its loss, and it learns."""

from __future__ import annotations

import numpy as np
import pytest

from stepd.demo import data, model


@pytest.fixture
def batch() -> data.Examples:
    few = data.load().train.take(slice(0, 8))
    return data.Examples(few.images.astype(np.float64), few.labels)


@pytest.mark.parametrize("name", sorted(model.initial()))
def test_the_gradient_is_that_of_finite_differences(name: str, batch: data.Examples) -> None:
    """In double precision and at random elements: differences of float32 are too coarse to tell."""
    rng = np.random.default_rng(7)
    # Biases off zero, so that no rectifier stands right at its corner.
    params = {key: value.astype(np.float64) + 0.01 * rng.standard_normal(value.shape) for key, value in INITIAL.items()}
    gradient = model.loss(params, batch).grads[name]
    assert gradient.shape == params[name].shape
    elements = params[name].reshape(-1)
    distance = 1e-6
    for index in rng.choice(elements.size, size=min(20, elements.size), replace=False):
        kept = elements[index]
        elements[index] = kept + distance
        above = model.loss(params, batch).value
        elements[index] = kept - distance
        below = model.loss(params, batch).value
        elements[index] = kept
        assert gradient.reshape(-1)[index] == pytest.approx((above - below) / (2 * distance), rel=1e-5, abs=1e-8)


INITIAL = model.initial()


def test_everything_is_float32() -> None:
    found = model.loss(INITIAL, data.load().train.take(slice(0, 32)))
    assert {array.dtype for array in (*INITIAL.values(), *found.grads.values())} == {np.dtype(np.float32)}
    assert found.grads.keys() == INITIAL.keys()


def test_every_worker_begins_with_the_same_parameters() -> None:
    again = model.initial()
    assert all(np.array_equal(INITIAL[name], again[name]) for name in INITIAL)


def test_before_training_it_guesses() -> None:
    digits = data.load()
    assert model.loss(INITIAL, digits.train).value == pytest.approx(np.log(10), abs=0.6)
    assert model.accuracy(INITIAL, digits.held_out) < 0.3


def test_plain_gradient_descent_learns_the_digits() -> None:
    digits = data.load()
    params = model.initial()
    for step in range(300):
        grads = model.loss(params, data.batch(digits.train, step, 64, seed=0)).grads
        params = {name: params[name] - np.float32(0.1) * grads[name] for name in params}
    assert model.accuracy(params, digits.held_out) > 0.93


def test_large_logits_do_not_overflow() -> None:
    large = {name: value * 1000 for name, value in INITIAL.items()}
    found = model.loss(large, data.load().train.take(slice(0, 32)))
    assert np.isfinite(found.value)
    assert all(np.isfinite(grad).all() for grad in found.grads.values())
