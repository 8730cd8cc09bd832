"""Makes the numbers of torch_schedules_2_13.npz; run by torch_numbers.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import lr_scheduler as torch_schedules

from tests.reference.schedule_cases import (
    BASE,
    PLATEAU_CASES,
    SCHEDULE_CASES,
    STEPS,
    STORED,
    Named,
    ScheduleCase,
    metric,
)

# stepd's name -> torch's, and names of arguments that differ.
NAMES: dict[str, tuple[str, dict[str, str]]] = {
    "Exponential": ("ExponentialLR", {"decay_rate": "gamma"}),
    "Step": ("StepLR", {}),
    "MultiStep": ("MultiStepLR", {}),
    "Polynomial": ("PolynomialLR", {"total_steps": "total_iters"}),
    "LinearFactor": ("LinearLR", {}),
    "ConstantFactor": ("ConstantLR", {}),
    "CosineAnnealing": ("CosineAnnealingLR", {}),
    "CosineWarmRestarts": ("CosineAnnealingWarmRestarts", {}),
    "OneCycle": ("OneCycleLR", {}),
    "Cyclic": ("CyclicLR", {}),
    "Sequential": ("SequentialLR", {"schedules": "schedulers"}),
    "Chained": ("ChainedScheduler", {"schedules": "schedulers"}),
}


def schedule_numbers() -> tuple[Path, dict[str, np.ndarray]]:
    warnings.simplefilter("ignore")  # of steps that come before the optimizer's
    stored: dict[str, np.ndarray] = {}
    for case in SCHEDULE_CASES.values():
        rates, momenta = run(case)
        stored[f"{case.name}/lr"] = np.array(rates)
        if len(set(momenta)) > 1:
            stored[f"{case.name}/momentum"] = np.array(momenta)
    for name, arguments in PLATEAU_CASES.items():
        optimizer = make_optimizer()
        scheduler = torch_schedules.ReduceLROnPlateau(optimizer, **arguments)
        rates = []
        for step in range(STEPS):
            scheduler.step(metric(step))
            rates.append(optimizer.param_groups[0]["lr"])
        stored[f"{name}/lr"] = np.array(rates)
    return STORED, stored


def run(case: ScheduleCase) -> tuple[list[float], list[float]]:
    optimizer = make_optimizer()
    scheduler = make(optimizer, case.schedule)
    group = optimizer.param_groups[0]
    rates, momenta = [scheduler.get_last_lr()[0]], [group["momentum"]]
    for step in range(1, STEPS + 1):
        scheduler.step()
        if step == case.set_at:
            group["lr"] = case.set_to
        rates.append(group["lr"])
        momenta.append(group["momentum"])
    return rates, momenta


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE, momentum=0.9)


def make(optimizer: torch.optim.Optimizer, named: Named) -> Any:
    name, arguments = named
    torchs, renamed = NAMES[name]
    own = {renamed.get(key, key): value for key, value in arguments.items()}
    if "schedulers" in own:
        own["schedulers"] = [make(optimizer, one) for one in own["schedulers"]]
    if name == "Chained":
        return torch_schedules.ChainedScheduler(own["schedulers"], optimizer)
    return getattr(torch_schedules, torchs)(optimizer, **own)
