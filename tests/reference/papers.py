"""Rules that torch does not have, written plainly from their papers: whole tensors, float64, new arrays for everything.

    step = RULES["Lion"]
    params = step(params, grads, state, t, lr, **options)

takes and gives {name: array}; `state` is an empty dict before the first step and is changed; t is 1 for the first step.
Nothing is shared with stepd, so that the same mistake is not made twice.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .cases import STEPS, Arrays, Case, gradient, initial

State = dict[Any, Any]
Step = Callable[..., Arrays]


def lion(params: Arrays, grads: Arrays, state: State, t: int, lr: float, **options: Any) -> Arrays:
    """Chen et al., 2023, algorithm 2."""
    b1, b2 = options.get("betas", (0.9, 0.99))
    lam, sign = options.get("weight_decay", 0.0), -1.0 if options.get("maximize") else 1.0
    after = {}
    for name, p in params.items():
        g = sign * grads[name]
        m = state.get(name, 0.0)
        after[name] = p - lr * (np.sign(b1 * m + (1 - b1) * g) + lam * p)
        state[name] = b2 * m + (1 - b2) * g
    return after


def yogi(params: Arrays, grads: Arrays, state: State, t: int, lr: float, **options: Any) -> Arrays:
    """Zaheer et al., 2018, algorithm 2, with Adam's corrections."""
    b1, b2 = options.get("betas", (0.9, 0.999))
    eps, start = options.get("eps", 1e-3), options.get("initial_accumulator_value", 1e-6)
    lam, sign = options.get("weight_decay", 0.0), -1.0 if options.get("maximize") else 1.0
    after = {}
    for name, p in params.items():
        g = sign * grads[name] + lam * p
        m, v = state.get(name, (start, start))
        m = b1 * m + (1 - b1) * g
        v = v - (1 - b2) * np.sign(v - g**2) * g**2
        state[name] = m, v
        after[name] = p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return after


def lars(params: Arrays, grads: Arrays, state: State, t: int, lr: float, **options: Any) -> Arrays:
    """You, Gitman & Ginsburg, 2017, algorithm 1, with what stepd's page says of exclusion, zeros and variants."""
    mu, lam = options.get("momentum", 0.9), options.get("weight_decay", 0.0)
    eta, exclude = options.get("trust_coefficient", 0.001), options.get("exclude", ("*bias*", "*norm*"))
    sign = -1.0 if options.get("maximize") else 1.0
    after = {}
    for name, w in params.items():
        g = sign * grads[name]
        w_norm, g_norm = np.linalg.norm(w), np.linalg.norm(g)
        local = 1.0
        if w_norm > 0 and g_norm > 0 and not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
            plain = options.get("variant") == "plain"
            local = eta * w_norm / (g_norm if plain else g_norm + lam * w_norm)
        step = lr * local * (g + lam * w)
        v = state[name] = mu * state.get(name, 0.0) + step
        after[name] = w - (mu * v + step if options.get("nesterov") else v)
    return after


def lamb(params: Arrays, grads: Arrays, state: State, t: int, lr: float, **options: Any) -> Arrays:
    """You et al., 2020, algorithm 2, phi the identity."""
    b1, b2 = options.get("betas", (0.9, 0.999))
    eps, lam = options.get("eps", 1e-6), options.get("weight_decay", 0.01)
    sign = -1.0 if options.get("maximize") else 1.0
    after = {}
    for name, x in params.items():
        g = sign * grads[name]
        m, v = state.get(name, (0.0, 0.0))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        state[name] = m, v
        u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + lam * x
        x_norm, u_norm = np.linalg.norm(x), np.linalg.norm(u)
        trusted = (
            x_norm > 0 and u_norm > 0 and not any(fnmatch.fnmatchcase(name, o) for o in options.get("exclude", ()))
        )
        after[name] = x - lr * (x_norm / u_norm if trusted else 1.0) * u
    return after


def schedule_free_sgd(params: Arrays, grads: Arrays, state: State, t: int, lr: float, **options: Any) -> Arrays:
    """Defazio et al., 2024, equations 3 to 5, in its own three sequences."""
    beta, lam = options.get("momentum", 0.9), options.get("weight_decay", 0.0)
    directions = {name: grads[name] + lam * y for name, y in params.items()}
    return _schedule_free(params, directions, state, t, lr, beta, options)


def schedule_free_adamw(params: Arrays, grads: Arrays, state: State, t: int, lr: float, **options: Any) -> Arrays:
    """Defazio et al., 2024, algorithm 1, with eps outside of the corrected root as in the authors' package."""
    b1, b2 = options.get("betas", (0.9, 0.999))
    lam, eps = options.get("weight_decay", 0.0), options.get("eps", 1e-8)
    directions = {}
    for name, y in params.items():
        v = b2 * state.get(("v", name), 0.0) + (1 - b2) * grads[name] ** 2
        state["v", name] = v
        directions[name] = grads[name] / (np.sqrt(v / (1 - b2**t)) + eps) + lam * y
    return _schedule_free(params, directions, state, t, lr, b1, options)


def _schedule_free(
    params: Arrays, directions: Arrays, state: State, t: int, lr: float, beta: float, options: dict[str, Any]
) -> Arrays:
    warmup = options.get("warmup_steps", 0)
    lr = lr * min(1.0, t / warmup) if warmup else lr
    state["highest"] = max(state.get("highest", 0.0), lr)
    weight = t ** options.get("r", 0.0) * state["highest"] ** options.get("weight_lr_power", 2.0)
    state["weights"] = state.get("weights", 0.0) + weight
    c = weight / state["weights"]
    after = {}
    for name, y in params.items():
        x, z = state.get(("x", name), y), state.get(("z", name), y)
        z = z - lr * directions[name]
        x = (1 - c) * x + c * z
        state["x", name], state["z", name] = x, z
        after[name] = (1 - beta) * z + beta * x
    return after


RULES: dict[str, Step] = {
    "Lion": lion,
    "Yogi": yogi,
    "LARS": lars,
    "LAMB": lamb,
    "ScheduleFreeSGD": schedule_free_sgd,
    "ScheduleFreeAdamW": schedule_free_adamw,
}


def train(case: Case) -> tuple[Arrays, Arrays | None, np.ndarray, np.ndarray]:
    """Final parameters, their average if the rule keeps one, and rates and norms of every step."""
    params = {name: np.asarray(value, np.float64) for name, value in initial(case).items()}
    options = {name: value for name, value in case.options.items() if name != "lr"}
    state: State = {}
    rates, norms = [], []
    for step in range(STEPS):
        grads = {name: np.asarray(g, np.float64) for name, g in gradient(case, step, params).items()}
        norms.append(np.sqrt(sum(np.sum(g**2) for g in grads.values())))
        scale = min(1.0, case.clip["max_norm"] / (norms[-1] + 1e-6)) if case.clip else 1.0
        rates.append(_rate(case, step))
        clipped = {name: scale * g for name, g in grads.items()}
        params = RULES[case.rule](params, clipped, state, step + 1, rates[-1], **options)
    average = {name: state["x", name] for name in params} if ("x", next(iter(params))) in state else None
    return params, average, np.array(rates)[:, None], np.array(norms)


def _rate(case: Case, step: int) -> float:
    lr: float = case.options["lr"]
    if case.schedule is None:
        return lr
    name, arguments = case.schedule
    assert name == "Cosine"
    lowest: float = arguments["min_lr"]
    return lowest + (lr - lowest) * (1 + math.cos(math.pi * step / arguments["total_steps"])) / 2
