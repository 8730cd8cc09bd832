"""Schedules that torch has, with the rates that torch gives: `get_last_lr` before the first and after each step.

What is not needed for that is neither torch nor stepd here. A case that sets a rate does so between two steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_name("torch_schedules_2_13.npz")
STEPS = 200
BASE = 0.1
TOLERANCE = 1e-12

Named = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class ScheduleCase:
    """One schedule.

    Attributes:
        name: unique.
        schedule: name in stepd and arguments.
        set_at: after this many steps the rate is set; None: never.
        set_to: what it is set to.
    """

    name: str
    schedule: Named
    set_at: int | None = None
    set_to: float = 0.033

    def __str__(self) -> str:
        return self.name


_EXPONENTIAL: Named = ("Exponential", {"decay_rate": 0.98})
_COSINE: Named = ("CosineAnnealing", {"T_max": 250, "eta_min": 1e-3})
_RISE: Named = ("LinearFactor", {"start_factor": 0.1, "total_iters": 30})
_CONSTANT: Named = ("ConstantFactor", {"factor": 0.5, "total_iters": 90})

# Those that go on from whatever the rate is, as far as that reaches in torch.
_CHAINABLE: dict[str, Named] = {
    "exponential": _EXPONENTIAL,
    "exponential-rising": ("Exponential", {"decay_rate": 1.01}),
    "step": ("Step", {"step_size": 30, "gamma": 0.5}),
    "multi-step": ("MultiStep", {"milestones": [120, 40, 120, 199], "gamma": 0.3}),
    "polynomial": ("Polynomial", {"total_steps": 150}),
    "polynomial-power": ("Polynomial", {"total_steps": 210, "power": 2.5}),
    "linear-factor": ("LinearFactor", {"start_factor": 0.25, "end_factor": 0.8, "total_iters": 100}),
    "constant-factor": _CONSTANT,
    "cosine": _COSINE,
    "chained": ("Chained", {"schedules": [_CONSTANT, _EXPONENTIAL]}),
    "chained-cosine": ("Chained", {"schedules": [_RISE, _COSINE]}),
    "chained-three": ("Chained", {"schedules": [_COSINE, _CONSTANT, _EXPONENTIAL]}),
}

_OTHERS: dict[str, Named] = {
    "linear-factor-default": ("LinearFactor", {}),
    "constant-factor-default": ("ConstantFactor", {}),
    "cosine-again": ("CosineAnnealing", {"T_max": 60}),
    "cosine-once": ("CosineAnnealing", {"T_max": 1, "eta_min": 0.01}),
    "chained-cosine-again": ("Chained", {"schedules": [("CosineAnnealing", {"T_max": 60, "eta_min": 1e-3}), _RISE]}),
    "cosine-restarts": ("CosineWarmRestarts", {"T_0": 30, "eta_min": 1e-3}),
    "cosine-restarts-longer": ("CosineWarmRestarts", {"T_0": 7, "T_mult": 2}),
    "one-cycle": ("OneCycle", {"max_lr": 0.3, "total_steps": 200}),
    "one-cycle-longer": ("OneCycle", {"max_lr": 0.3, "total_steps": 333, "pct_start": 0.4, "cycle_momentum": False}),
    "one-cycle-linear": (
        "OneCycle",
        {"max_lr": 0.3, "total_steps": 201, "anneal_strategy": "linear", "base_momentum": 0.7, "max_momentum": 0.9},
    ),
    "one-cycle-three": (
        "OneCycle",
        {"max_lr": 0.3, "total_steps": 210, "three_phase": True, "div_factor": 10.0, "final_div_factor": 100.0},
    ),
    "cyclic": ("Cyclic", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 20}),
    "cyclic-halving": (
        "Cyclic",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 11, "step_size_down": 24, "mode": "triangular2"},
    ),
    "cyclic-exponential": (
        "Cyclic",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 17, "mode": "exp_range", "gamma": 0.99, "base_momentum": 0.6},
    ),
    "sequential": ("Sequential", {"schedules": [_RISE, _COSINE], "milestones": [30]}),
    "sequential-three": (
        "Sequential",
        {"schedules": [_CONSTANT, _EXPONENTIAL, ("Step", {"step_size": 20})], "milestones": [20, 90]},
    ),
    "sequential-restarts": (
        "Sequential",
        {"schedules": [_RISE, ("CosineWarmRestarts", {"T_0": 40, "eta_min": 1e-3})], "milestones": [30]},
    ),
}


def _cases() -> dict[str, ScheduleCase]:
    cases = [ScheduleCase(name, named) for name, named in (_CHAINABLE | _OTHERS).items()]
    cases += [ScheduleCase(f"{name}-set", named, set_at=70) for name, named in _CHAINABLE.items()]
    return {case.name: case for case in cases}


SCHEDULE_CASES = _cases()

# Arguments of ReduceOnPlateau and the name of the metrics that it is told.
PLATEAU_CASES: dict[str, dict[str, Any]] = {
    "plateau": {"patience": 5, "factor": 0.5},
    "plateau-max": {"mode": "max", "patience": 3, "factor": 0.7, "threshold": 0.01, "cooldown": 4, "min_lr": 1e-3},
    "plateau-abs": {"patience": 2, "threshold": 0.05, "threshold_mode": "abs", "eps": 1e-4},
    "plateau-max-abs": {"mode": "max", "patience": 0, "factor": 0.9, "threshold_mode": "abs", "cooldown": 1},
}


def metric(step: int) -> float:
    """A loss that falls and gets stuck now and then; once it is not a number."""
    if step == 50:
        return float("nan")
    return 1.0 / (1 + step // 25) + (step * 7919 % 101) / 1000
