"""Training runs whose numbers are known: what torch 2.13 makes of them is stored beside this file.

A case says everything that both sides need: parameters, gradients, rule, schedule, clip. Gradients depend on the
parameters (noise + 0.1 * (p - 1)), so that an error in one step shows in the next; values stay about 1, since of a
number near 0 any rounding is a large relative error. Nothing here needs torch or stepd; the noise is computed by a
hash (splitmix64), which is the same everywhere and in every version of NumPy.

    case = CASES["adamw-clip-cosine-float32"]
    params = initial(case)                     # {name: array}
    grads = gradient(case, step, params)       # {name: array}; what is left out has no gradient in this step
    gradient(case, step, params, worker=1, workers=3)   # one worker's share; the mean over workers is the gradient
    reference(case)                            # torch's final parameters, and rate and norm of every step
    error(case, params)                        # the largest relative error of any tensor
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

STORED = Path(__file__).with_name("torch_2_13.npz")
STEPS = 100
# More are large: their noise repeats itself, after a prime number of elements, as making so much takes time.
_LARGE_ELEMENTS = 5003
# Relative to the largest element of the tensor: what stepd promises after STEPS steps.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

SMALL = {"scale": (), "bias": (7,), "dense.weight": (5, 3), "conv/kernel": (2, 3, 2, 2)}
# 3.2 blocks of 65,536 elements, so that three shards hold pieces of it.
LARGE = {"bias": (700,), "table": (300, 700)}
# 2.3 blocks, which are the fewest of which each of three shards gets one.
TABLE = {"table": (3, 50_000)}


@dataclass(frozen=True)
class Group:
    """Parameters by name, with what is their own.

    Attributes:
        names: of the parameters.
        options: of the rule, over those of the case.
        schedule: name and arguments; None: the case's.
    """

    names: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    schedule: tuple[str, dict[str, Any]] | None = None


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: unique.
        dtype: of all parameters.
        rule: of the optimizer, a class of torch.optim and of stepd.
        options: its arguments.
        schedule: name in stepd and arguments; None: none.
        clip: arguments of a clip by norm and by value: max_norm, norm_type, max_value. Empty: none.
        shapes: of the parameters.
        groups: one with all parameters unless given.
        gaps: some parameters have no gradient in some steps.
        stride: of a large final tensor only every so many elements are stored.
        stored: the file with its numbers.
    """

    name: str
    dtype: str
    rule: str
    options: dict[str, Any]
    schedule: tuple[str, dict[str, Any]] | None = None
    clip: dict[str, float] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=lambda: SMALL)
    groups: tuple[Group, ...] = ()
    gaps: bool = False
    stride: int = 1
    stored: Path = STORED

    def __str__(self) -> str:
        return self.name

    @property
    def exact_norm(self) -> bool:
        """Clipped by the exact norm: torch's own float32 norm of a large gradient is off by more than the tolerance."""
        return "table" in self.shapes

    def all_groups(self) -> tuple[Group, ...]:
        return self.groups or (Group(tuple(self.shapes)),)


class Reference(NamedTuple):
    """What torch made of a case.

    Attributes:
        final: of each parameter, after the last step: all elements or, if it is large, every `stride`-th in C order.
        lr: by step and group.
        norm: by step: of the whole gradient, before clipping by norm and after clipping by value.
    """

    final: Arrays
    lr: np.ndarray
    norm: np.ndarray


def rules_of_torch() -> dict[str, tuple[str, dict[str, Any]]]:
    sgd = {"lr": 0.05}
    momentum = {**sgd, "momentum": 0.9}
    adam = {"lr": 0.02}
    return {
        "sgd": ("SGD", sgd),
        "sgd-momentum": ("SGD", momentum),
        "sgd-dampening": ("SGD", {**momentum, "dampening": 0.3}),
        "sgd-nesterov": ("SGD", {**momentum, "nesterov": True}),
        "sgd-decay": ("SGD", {**momentum, "weight_decay": 0.05}),
        "sgd-maximize": ("SGD", {"lr": 0.005, "momentum": 0.5, "weight_decay": 0.01, "maximize": True}),
        "adam": ("Adam", adam),
        "adam-decay": ("Adam", {**adam, "weight_decay": 0.05}),
        "adam-amsgrad": ("Adam", {**adam, "betas": (0.8, 0.95), "amsgrad": True}),
        "adam-maximize": ("Adam", {**adam, "maximize": True}),
        "adamw": ("AdamW", adam),
        "adamw-amsgrad": ("AdamW", {**adam, "weight_decay": 0.1, "amsgrad": True}),
        "adamw-maximize": ("AdamW", {**adam, "eps": 1e-3, "maximize": True}),
    }


def _cases() -> dict[str, Case]:
    cosine = ("Cosine", {"total_steps": STEPS, "min_lr": 1e-4})
    clip = {"max_norm": 1.0}
    rules = rules_of_torch()
    cases = []
    for dtype in TOLERANCE:
        for name, (rule, options) in rules.items():
            cases.append(Case(f"{name}-{dtype}", dtype, rule, options))
            cases.append(Case(f"{name}-clip-cosine-{dtype}", dtype, rule, options, cosine, clip))
        for name in ("sgd-nesterov", "adamw-amsgrad"):
            rule, options = rules[name]
            cases.append(Case(f"{name}-gaps-{dtype}", dtype, rule, options, cosine, clip, gaps=True))
        groups = (
            Group(("bias", "scale"), {"lr": 0.1, "weight_decay": 0.0}, ("Warmup", {"warmup_steps": 20})),
            Group(("conv/kernel", "dense.weight"), {"betas": (0.8, 0.99)}),
        )
        linear = ("Linear", {"total_steps": 80, "warmup_steps": 10, "min_lr": 1e-3})
        cases += [
            Case(f"adamw-groups-{dtype}", dtype, *rules["adamw"], linear, clip, groups=groups),
            Case(f"sgd-clip-value-{dtype}", dtype, *rules["sgd-momentum"], linear, {"max_value": 0.5}),
            Case(f"sgd-clip-both-{dtype}", dtype, *rules["sgd"], cosine, {"max_value": 0.7, "max_norm": 2.0}),
            Case(f"sgd-clip-max-{dtype}", dtype, *rules["sgd"], None, {"max_norm": 0.8, "norm_type": math.inf}),
            Case(f"adam-clip-one-{dtype}", dtype, *rules["adam"], None, {"max_norm": 9.0, "norm_type": 1.0}),
            Case(f"adamw-large-{dtype}", dtype, *rules["adamw"], cosine, clip, shapes=LARGE, stride=499),
        ]
    return {case.name: case for case in cases}


CASES = _cases()


def initial(case: Case) -> Arrays:
    """The parameters before the first step; new arrays."""
    return {name: np.asarray(1 + 0.5 * _noise(case, 0, name)) for name in case.shapes}


def gradient(case: Case, step: int, params: Arrays, worker: int = 0, workers: int = 1) -> Arrays:
    """One worker's gradient at a step (0 is the first), in the case's dtype.

    Workers' gradients are multiples of each other, as different as it gets while their mean has no error but rounding.
    """
    grads = {}
    for name in case.shapes:
        holders = _holders(case, step, name, workers)
        if worker in holders:
            grad = _noise(case, step + 1, name) + 0.1 * (np.asarray(params[name]) - 1)
            # Shares of those who have it add up to the number of all: the mean counts the others as zeros.
            place = (holders.index(worker) + step) % len(holders)
            share = 2 * (place + 1) / (len(holders) * (len(holders) + 1)) * workers
            grads[name] = np.asarray(grad * share, dtype=case.dtype)
    return grads


def _holders(case: Case, step: int, name: str, workers: int) -> list[int]:
    """The workers that have a gradient for a parameter: with gaps nobody in some steps, one in others."""
    if case.gaps and name == "bias" and step % 3 != 1:
        return []
    elif case.gaps and name == "dense.weight" and step % 5 == 2:
        return [0]
    return list(range(workers))


def reference(case: Case) -> Reference:
    stored = stored_numbers(case.stored)
    flat, rates, norms = (stored[f"{case.name}/{what}"] for what in ("final", "lr", "norm"))
    return Reference(_by_name(case, flat), rates, norms)


def other_final(case: Case, what: str) -> Arrays | None:
    """Another library's final parameters of the same case, None if there are none."""
    flat = stored_numbers(case.stored).get(f"{case.name}/{what}")
    return None if flat is None else _by_name(case, flat)


def _by_name(case: Case, flat: np.ndarray) -> Arrays:
    final, start = {}, 0
    for name, shape in case.shapes.items():
        count = len(range(0, math.prod(shape), _stride(case, math.prod(shape))))
        final[name] = flat[start : start + count]
        start += count
    assert start == flat.size
    return final


def sample(case: Case, array: Any) -> np.ndarray:
    """The elements of a final parameter that are stored."""
    return np.ascontiguousarray(array).reshape(-1)[:: _stride(case, np.size(array))]


def _stride(case: Case, size: int) -> int:
    return case.stride if size > _LARGE_ELEMENTS else 1


def error(case: Case, params: Arrays, final: Arrays | None = None) -> float:
    """The largest relative error of final parameters: by tensor, max|a - b| / max|b|."""
    errors = []
    for name, expected in (final or reference(case).final).items():
        given = sample(case, params[name]).astype(np.float64)
        errors.append(np.abs(given - expected).max() / np.abs(expected).max())
    return float(max(errors))


@cache
def stored_numbers(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)


@lru_cache(maxsize=2048)
def _shared_noise(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Numbers in [-1, 1): splitmix64 of seed and position, by Steele, Lea & Flood, 2014."""
    count = math.prod(shape)
    z = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(seed * 0xD1B54A32D192ED03 % 2**64)  # arrays wrap around silently, as they should; scalars warn
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (2 * unit - 1).astype(dtype).reshape(shape)


def _noise(case: Case, step: int, name: str) -> np.ndarray:
    seed, shape = step * 64 + list(case.shapes).index(name) + 1, case.shapes[name]
    if math.prod(shape) <= _LARGE_ELEMENTS:
        return _shared_noise(case.dtype, shape, seed)
    return np.resize(_shared_noise(case.dtype, (_LARGE_ELEMENTS,), seed), shape)
