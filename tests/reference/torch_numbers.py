"""Makes torch_2_13.npz and torch_{rules,averages,schedules,states}_2_13.npz: what torch makes of the cases beside this
file.

    python -m venv venv && venv/bin/pip install torch==2.13.0 numpy
    PYTHONPATH=. venv/bin/python -m tests.reference.torch_numbers

Needs neither stepd nor anything else. Running it again gives the same files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from tests.reference.cases import CASES, STEPS, STORED, Case, gradient, initial, sample
from tests.reference.rule_cases import SPANNING_CASES, TORCH_CASES, TORCH_STORED
from tests.reference.torch_averages import average_numbers
from tests.reference.torch_muon import uncast_muon
from tests.reference.torch_schedules import schedule_numbers
from tests.reference.torch_states import state_numbers

WANTED = "2.13.0"


def main() -> None:
    assert torch.__version__.split("+")[0] == WANTED, torch.__version__
    torch.set_num_threads(1)  # the order of sums does not depend on the machine
    save(STORED, numbers(CASES.values()))
    spanning = [case for case in SPANNING_CASES.values() if case.stored == TORCH_STORED]
    save(TORCH_STORED, numbers([*TORCH_CASES.values(), *spanning]))
    save(*average_numbers(run))
    save(*schedule_numbers())
    save(*state_numbers())


def save(path: Path, stored: dict[str, np.ndarray]) -> None:
    np.savez_compressed(path, **stored)
    sys.stdout.write(f"{path.name}: {len(stored)} arrays, {path.stat().st_size:,} bytes\n")


def numbers(cases: Iterable[Case]) -> dict[str, np.ndarray]:
    stored: dict[str, np.ndarray] = {}
    for case in cases:
        with uncast_muon():
            final, rates, norms = run(case)
        stored[f"{case.name}/final"] = flat(case, final)
        stored[f"{case.name}/lr"] = rates
        stored[f"{case.name}/norm"] = norms
        if case.rule == "Muon":
            stored[f"{case.name}/bfloat16"] = flat(case, run(case)[0])
    return stored


def flat(case: Case, final: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([sample(case, final[name]) for name in case.shapes])


def run(
    case: Case, after: Callable[[int, dict[str, torch.nn.Parameter]], None] = lambda step, params: None
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    params = {name: torch.nn.Parameter(torch.from_numpy(np.array(value))) for name, value in initial(case).items()}
    groups = [{"params": [params[name] for name in group.names], **group.options} for group in case.all_groups()]
    optimizer = getattr(torch.optim, case.rule)(groups, **case.options)
    scheduler = make_scheduler(case, optimizer)
    rates, norms = [], []
    for step in range(STEPS):
        values = {name: param.detach().numpy() for name, param in params.items()}
        grads = gradient(case, step, values)
        for name, param in params.items():
            param.grad = torch.from_numpy(grads[name]) if name in grads else None
        norms.append(clip(case, [param for param in params.values() if param.grad is not None]))
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        if scheduler:
            scheduler.step()
        after(step + 1, params)
    return {name: param.detach().numpy() for name, param in params.items()}, np.array(rates), np.array(norms)


def clip(case: Case, params: list[torch.nn.Parameter]) -> float:
    """Clip the gradients by value, then by norm; the norm between the two."""
    if "max_value" in case.clip:
        torch.nn.utils.clip_grad_value_(params, case.clip["max_value"])
    max_norm, norm_type = case.clip.get("max_norm", math.inf), case.clip.get("norm_type", 2.0)
    exact = float(torch.nn.utils.get_total_norm([param.grad.double() for param in params], norm_type))
    if case.exact_norm:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, torch.tensor(exact, dtype=torch.float64))
    elif "max_norm" in case.clip:
        torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
    return exact


def make_scheduler(case: Case, optimizer: torch.optim.Optimizer) -> LRScheduler | None:
    each = [group.schedule or case.schedule for group in case.all_groups()]
    if each == [None]:
        return None
    if len(each) == 1 and each[0][0] == "Cosine":
        arguments = each[0][1]
        return CosineAnnealingLR(optimizer, T_max=arguments["total_steps"], eta_min=arguments["min_lr"])
    bases = [group["lr"] for group in optimizer.param_groups]
    return LambdaLR(optimizer, [factor(*schedule, base) for schedule, base in zip(each, bases, strict=True)])


def factor(name: str, arguments: dict[str, Any], base: float) -> Any:
    """The rate at a step in units of the base rate, as users of torch write it for warm-up."""
    warmup = arguments["warmup_steps"]
    if name == "Warmup":
        return lambda step: min(1.0, (step + 1) / warmup)
    assert name == "Linear"
    total, lowest = arguments["total_steps"], arguments["min_lr"] / base

    def linear(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return lowest + (1 - lowest) * max(0.0, (total - step) / (total - warmup))

    return linear


if __name__ == "__main__":
    main()
