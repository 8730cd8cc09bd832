"""What docs/from-*.md say of numbers, held against the other libraries' formulas, written plainly from their pages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepd.policies import ClipNorm
from stepd.rules import LARS, SGD, Adadelta, Adagrad, Adam, AdamW, Lion, RMSprop, Rule
from stepd.schedules import (
    Constant,
    Cosine,
    Exponential,
    FromList,
    Linear,
    LinearFactor,
    MultiStep,
    Polynomial,
    Schedule,
    Sequential,
    Step,
    Warmup,
)
from tests.unit.one_process import Tensor

Array = Any  # of numpy, or the 0.0 that a buffer begins with
# One step: parameters, gradient, their buffers (to be changed), the step's number from 1; gives the new parameters.
TheirStep = Callable[[Array, Array, dict[str, Any], int], Array]
RATE, TOTAL, WARMUP, LOWEST = 0.1, 100, 10, 0.01
STEPS = range(130)


def train(rule: Rule, theirs: TheirStep, name: str = "weight") -> float:
    """The largest difference after 50 steps in double, gradients depending on the parameters."""
    random = np.random.default_rng(1)
    p = 1 + 0.5 * random.standard_normal(12)
    ours, state = Tensor(rule, p, name), dict[str, Any]()
    for t in range(1, 51):
        noise = random.standard_normal(12)
        ours.update(noise + 0.1 * (ours.p - 1), rule.lr, [5])
        p = theirs(p, noise + 0.1 * (p - 1), state, t)
    return float(np.abs(ours.p - p).max())


# --- Rules ------------------------------------------------------------------------------------------------------


def sgd(lr: float, momentum: float = 0.0, decay: float = 0.0, dampening: float = 0.0, *, nesterov: bool = False) -> Any:
    """Lugh's, Mojo's and Born's; TorchLean's with dampening, which leaves the first gradient whole."""

    def step(p: Array, g: Array, state: dict[str, Any], t: int) -> Array:
        g = g + decay * p
        v = g if t == 1 else momentum * state["v"] + (1 - dampening) * g
        state["v"] = v
        return p - lr * (momentum * v + g if nesterov else v)

    return step


def adam(lr: float, decay: float = 0.0, decoupled: float = 0.0) -> Any:
    """Adam and AdamW of all four: the decay added to the gradient, or to the step."""

    def step(p: Array, g: Array, state: dict[str, Any], t: int) -> Array:
        g = g + decay * p
        m = state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * g
        v = state["v"] = 0.999 * state.get("v", 0.0) + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        return p - lr * (m_hat / (np.sqrt(v_hat) + 1e-8) + decoupled * p)

    return step


def scaled(lr: float, eps: float, average: Callable[[Array, Array], Array], decay: float = 0.0) -> Any:
    """AdaGrad and RMSProp: by the root of a sum or an average of squares."""

    def step(p: Array, g: Array, state: dict[str, Any], t: int) -> Array:
        g = g + decay * p
        s = state["s"] = average(state.get("s", np.zeros_like(p)), g**2)
        return p - lr / (np.sqrt(s) + eps) * g

    return step


def adadelta(p: Array, g: Array, state: dict[str, Any], t: int) -> Array:
    s = state["s"] = 0.9 * state.get("s", 0.0) + 0.1 * g**2
    d = np.sqrt(state.get("u", 0.0) + 1e-6) / np.sqrt(s + 1e-6) * g
    state["u"] = 0.9 * state.get("u", 0.0) + 0.1 * d**2
    return p - d


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [
        (SGD(lr=0.05), sgd(0.05)),
        (SGD(lr=0.05, momentum=0.9, weight_decay=0.01), sgd(0.05, 0.9, 0.01)),
        (SGD(lr=0.05, momentum=0.9, nesterov=True), sgd(0.05, 0.9, nesterov=True)),
        (SGD(lr=0.05, momentum=0.9, dampening=0.3), sgd(0.05, 0.9, dampening=0.3)),
        (Adam(lr=0.02), adam(0.02)),
        (Adam(lr=0.02, weight_decay=0.05), adam(0.02, decay=0.05)),
        (AdamW(lr=0.02, weight_decay=0.05), adam(0.02, decoupled=0.05)),
        (Adagrad(lr=0.05, eps=1e-8), scaled(0.05, 1e-8, lambda s, square: s + square)),
        (RMSprop(lr=0.01, alpha=0.9), scaled(0.01, 1e-8, lambda s, square: 0.9 * s + 0.1 * square)),
        (
            RMSprop(lr=0.01, alpha=0.9, weight_decay=0.05),
            scaled(0.01, 1e-8, lambda s, square: 0.9 * s + 0.1 * square, decay=0.05),
        ),
        (Adadelta(lr=1.0, rho=0.9, eps=1e-6), adadelta),
    ],
    ids=lambda value: repr(value) if isinstance(value, Rule) else "",
)
def test_steps_of_other_libraries(rule: Rule, theirs: TheirStep) -> None:
    assert train(rule, theirs) < 1e-12


def mojos_lars(p: Array, g: Array, state: dict[str, Any], t: int) -> Array:
    """The rate outside of the velocity; a small number beside the norms."""
    p_norm, g_norm = np.linalg.norm(p), np.linalg.norm(g)
    trust = 0.01 * p_norm / (g_norm + 0.05 * p_norm + 1e-8)
    v = state["v"] = 0.9 * state.get("v", 0.0) + trust * (g + 0.05 * p)
    return p - 2.0 * v


def tensor_logics_lars(*, adaptive: bool) -> Any:
    """The decay not in the denominator; the rate within the velocity; excluded ones by the plain rate."""

    def step(p: Array, g: Array, state: dict[str, Any], t: int) -> Array:
        rate = 0.05 * (0.1 * np.linalg.norm(p) / np.linalg.norm(g) if adaptive else 1.0)
        v = state["v"] = 0.9 * state.get("v", 0.0) + rate * (g + 0.05 * p)
        return p - v

    return step


def test_lars_of_other_libraries() -> None:
    paper = LARS(lr=2.0, momentum=0.9, weight_decay=0.05, trust_coefficient=0.01, exclude=(), variant="paper")
    assert train(paper, mojos_lars) < 1e-7  # its small number is felt
    plain = LARS(lr=0.05, weight_decay=0.05, trust_coefficient=0.1, variant="plain", exclude=("*b*",))
    assert train(plain, tensor_logics_lars(adaptive=True), "w") < 1e-12
    assert train(plain, tensor_logics_lars(adaptive=False), "embedding") < 1e-12


def test_the_sign_of_the_gradient() -> None:
    """optax.sign_sgd."""
    assert train(Lion(lr=0.01, betas=(0, 0)), lambda p, g, state, t: p - 0.01 * np.sign(g)) < 1e-13


def test_names_of_state() -> None:
    """Born's velocity.i, m.i and v.i are these."""
    assert [buffer.name for buffer in SGD(momentum=0.9).buffers()] == ["momentum_buffer"]
    assert [buffer.name for buffer in Adam().buffers()] == ["exp_avg", "exp_avg_sq"]


def test_clipping_by_norm_and_by_value() -> None:
    """By norm: torch's factor; others have max / norm where the norm is larger, which is the same to 1e-6."""
    clip = ClipNorm(max_norm=2.0)
    assert clip.scale(0.5) == 1.0
    assert clip.scale(8.0) == 2.0 / (8.0 + 1e-6)
    assert clip.scale(8.0) == pytest.approx(2.0 / 8.0, rel=1e-6)


# --- Schedules --------------------------------------------------------------------------------------------------


def rates(schedule: Schedule) -> list[float]:
    return [schedule.rate(step, RATE) for step in STEPS]


def named(value: object) -> str | None:
    """Names of cases: a function's own would be its address, another in every process."""
    return repr(value) if isinstance(value, Schedule) else None


def warmed(rate_after: Callable[[int], float], warmup: int = WARMUP) -> list[float]:
    """A curve that rises from 0 at step 0, as most libraries have it, as ours has it: one step ahead until it is up."""
    return [RATE * min(1.0, (step + 1) / warmup) if step < warmup else rate_after(step) for step in STEPS]


def progress(step: int, warmup: int = WARMUP) -> float:
    return min(1.0, (step - warmup) / (TOTAL - warmup))


def lugh(kind: str, step: int) -> float:
    """As the page of Lugh::Optimizer::LRScheduler has it."""
    if kind in ("linear", "cosine", "warmup") and step <= WARMUP:
        return RATE * step / WARMUP
    if kind == "linear":
        return RATE + (LOWEST - RATE) * progress(step)
    if kind == "cosine":
        return LOWEST + 0.5 * (RATE - LOWEST) * (1 + math.cos(math.pi * progress(step)))
    if kind == "exponential":
        return max(RATE * 0.99**step, LOWEST)
    if kind == "step":
        return RATE * 0.1 ** sum(milestone <= step for milestone in (30, 60, 90))
    return RATE


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("constant", Constant()),
        ("linear", Linear(TOTAL, WARMUP, LOWEST)),
        ("cosine", Cosine(TOTAL, WARMUP, LOWEST)),
        ("exponential", Exponential(0.99)),
        ("step", MultiStep([30, 60, 90], 0.1)),
        ("warmup", Warmup(WARMUP)),
    ],
)
def test_schedules_of_lugh(kind: str, schedule: Schedule) -> None:
    """While a warm-up lasts our step s is its s + 1, from then on the same."""
    warmup = WARMUP if kind in ("linear", "cosine", "warmup") else 0
    expected = [lugh(kind, step + 1 if step < warmup else step) for step in STEPS]
    np.testing.assert_allclose(rates(schedule), expected, rtol=1e-12)


def test_a_warm_up_that_begins_at_zero_is_one_step_behind() -> None:
    """optax's warmup_* schedules from 0."""

    def cosine(step: int) -> float:
        return LOWEST + (RATE - LOWEST) * (1 + math.cos(math.pi * progress(step))) / 2

    np.testing.assert_allclose(rates(Warmup(WARMUP)), warmed(lambda step: RATE), rtol=1e-12)
    np.testing.assert_allclose(rates(Cosine(TOTAL, WARMUP, LOWEST)), warmed(cosine), rtol=1e-12)
    both = Sequential([Warmup(WARMUP), Exponential(0.98)], [WARMUP])
    np.testing.assert_allclose(rates(both), warmed(lambda step: RATE * 0.98 ** (step - WARMUP)), rtol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (Constant(), lambda s: RATE),
        (Linear(TOTAL, min_lr=LOWEST), lambda s: RATE + (LOWEST - RATE) * progress(s, 0)),
        (
            Cosine(TOTAL, min_lr=0.1 * RATE),
            lambda s: RATE * (0.9 * 0.5 * (1 + math.cos(math.pi * progress(s, 0))) + 0.1),
        ),
        (Exponential(0.98), lambda s: RATE * 0.98**s),
        (Step(20, 0.5), lambda s: RATE * 0.5 ** (s // 20)),
        (Polynomial(TOTAL, 2.0), lambda s: RATE * (1 - progress(s, 0)) ** 2),
        (MultiStep([20, 60], 0.1), lambda s: RATE * (1 if s < 20 else 0.1 if s < 60 else 0.01)),
    ],
    ids=named,
)
def test_schedules_of_optax(schedule: Schedule, theirs: Callable[[int], float]) -> None:
    np.testing.assert_allclose(rates(schedule), [theirs(step) for step in STEPS], rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [
        (Constant(), lambda s: RATE),
        (Exponential(0.9), lambda s: RATE * 0.9**s),
        (Step(10, 0.5), lambda s: RATE * 0.5 ** (s // 10)),
        (
            Cosine(TOTAL, min_lr=LOWEST),
            lambda s: LOWEST + (RATE - LOWEST) * (1 + math.cos(math.pi * min(s, TOTAL) / TOTAL)) / 2,
        ),
        (
            LinearFactor(0.25, 1.0, WARMUP),
            lambda s: RATE if s >= WARMUP else 0.25 * RATE + (RATE - 0.25 * RATE) * s / WARMUP,
        ),
    ],
    ids=named,
)
def test_schedules_of_mojo_and_torchlean(schedule: Schedule, theirs: Callable[[int], float]) -> None:
    """Their cosines stay at the end, as ours does."""
    np.testing.assert_allclose(rates(schedule), [theirs(step) for step in STEPS], rtol=1e-12)


def test_a_function_of_the_step_becomes_a_list() -> None:
    """torch's LambdaLR and MultiplicativeLR, TorchLean's custom."""
    factors = [1 / (1 + step) for step in STEPS]
    assert rates(FromList(factors)) == [RATE * factor for factor in factors]
    products = np.cumprod([1.0] + [0.95] * (len(STEPS) - 1))
    np.testing.assert_allclose(rates(FromList(list(products))), RATE * products, rtol=1e-15)
