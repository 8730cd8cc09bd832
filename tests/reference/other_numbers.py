"""Makes other_rules.npz: what papers.py, optax and schedulefree make of rules that torch does not have.

    python -m venv venv && venv/bin/pip install torch==2.13.0 schedulefree==1.4.1 jax==0.10.2 optax==0.2.8 numpy
    PYTHONPATH=. venv/bin/python -m tests.reference.other_numbers

optax has no part of these: LARS divides by the norm of gradient and decay together, which is ours only without decay,
and excludes by a mask; its LAMB excludes by a mask; its Lion and Yogi do not maximize, its Yogi does not decay.
Its schedule-free rules average differently: those of the authors' own package, schedulefree, are the measure.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import schedulefree
import torch

from tests.reference import papers
from tests.reference.cases import STEPS, Arrays, Case, gradient, initial
from tests.reference.rule_cases import OTHER_CASES, OTHER_STORED, SPANNING_CASES
from tests.reference.torch_numbers import clip, flat, make_scheduler, save

jax.config.update("jax_enable_x64", True)


def main() -> None:
    torch.set_num_threads(1)
    stored: dict[str, np.ndarray] = {}
    spanning = [case for case in SPANNING_CASES.values() if case.stored == OTHER_STORED]
    for case in [*OTHER_CASES.values(), *spanning]:
        final, average, rates, norms = papers.train(case)
        stored[f"{case.name}/final"] = flat(case, final)
        stored[f"{case.name}/lr"] = rates
        stored[f"{case.name}/norm"] = norms
        if average:
            free, its_average = with_schedulefree(case)
            stored[f"{case.name}/schedulefree"] = flat(case, free)
            stored[f"{case.name}/average"] = flat(case, its_average)
        elif in_optax(case):
            stored[f"{case.name}/optax"] = flat(case, with_optax(case, rates[:, 0]))
    save(OTHER_STORED, stored)


def in_optax(case: Case) -> bool:
    options = case.options
    if options.get("maximize"):
        return False
    elif case.rule == "LARS":
        return not options.get("weight_decay") and not options["exclude"]
    return case.rule in ("Lion", "LAMB") or not options.get("weight_decay")


def with_optax(case: Case, rates: np.ndarray) -> Arrays:
    options = {name: value for name, value in case.options.items() if name not in ("lr", "exclude")}
    if "betas" in options:
        options["b1"], options["b2"] = options.pop("betas")
    if case.rule == "Lion":
        options.setdefault("weight_decay", 0.0)
    rule = getattr(optax, case.rule.lower())(lambda count: jax.numpy.asarray(rates)[count], **options)
    params: Any = {name: jax.numpy.asarray(value) for name, value in initial(case).items()}
    state = rule.init(params)
    for step in range(STEPS):
        grads = gradient(case, step, {name: np.asarray(value) for name, value in params.items()})
        if case.clip:
            norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values()))
            scale = min(1.0, case.clip["max_norm"] / (norm + 1e-6))
            grads = {name: np.asarray(g * scale, case.dtype) for name, g in grads.items()}
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        assert all(value.dtype == case.dtype for value in params.values())
    return {name: np.asarray(value) for name, value in params.items()}


def with_schedulefree(case: Case) -> tuple[Arrays, Arrays]:
    params = {name: torch.nn.Parameter(torch.from_numpy(np.array(value))) for name, value in initial(case).items()}
    kind = {"ScheduleFreeSGD": "SGDScheduleFree", "ScheduleFreeAdamW": "AdamWScheduleFree"}[case.rule]
    optimizer = getattr(schedulefree, kind)(list(params.values()), foreach=False, **case.options)
    optimizer.train()
    scheduler = make_scheduler(case, optimizer)
    for step in range(STEPS):
        grads = gradient(case, step, {name: param.detach().numpy() for name, param in params.items()})
        for name, param in params.items():
            param.grad = torch.from_numpy(grads[name])
        clip(case, list(params.values()))
        optimizer.step()
        if scheduler:
            scheduler.step()
    trained = {name: param.detach().numpy().copy() for name, param in params.items()}
    optimizer.eval()
    return trained, {name: param.detach().numpy().copy() for name, param in params.items()}


if __name__ == "__main__":
    main()
