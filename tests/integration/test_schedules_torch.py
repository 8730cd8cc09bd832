"""Rates through the wire against torch's `get_last_lr`: before and after each of 200 steps, of every schedule.

Rates are set in the middle, and later the coordinator is killed.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

import stepd
from tests.integration.servers import eventually
from tests.reference import schedule_cases
from tests.reference.as_stepd import schedule
from tests.reference.cases import stored_numbers
from tests.reference.schedule_cases import BASE, PLATEAU_CASES, SCHEDULE_CASES, STEPS, TOLERANCE, metric

STORED = stored_numbers(schedule_cases.STORED)
# torch does not have these: their curves are those of tests/unit/test_schedules.py.
OWN: dict[str, Any] = {
    "constant": stepd.Constant(),
    "warmup": stepd.Warmup(warmup_steps=30),
    "linear": stepd.Linear(total_steps=150, warmup_steps=20, min_lr=1e-3),
    "cosine-warm": stepd.Cosine(total_steps=150, warmup_steps=20, min_lr=1e-3),
    "inverse-sqrt": stepd.InverseSqrt(warmup_steps=25),
    "stable": stepd.WarmupStableDecay(warmup_steps=10, stable_steps=80, decay_steps=60, min_lr=1e-4),
    "list": stepd.FromList([1 / (1 + step) for step in range(90)]),
}
SCHEDULES: dict[str, Any] = {name: schedule(case.schedule) for name, case in SCHEDULE_CASES.items()} | OWN
KILLED_AT = 125
# Of plateaus: one that is never too low to be reduced, with either rate.
SET_AT, SET, SET_TO = 65, list(PLATEAU_CASES).index("plateau-max-abs"), 0.02
MOMENTUM = 0.9


def rates(name: str) -> np.ndarray:
    """Before each step, and after the last."""
    if name in OWN:
        return np.array([OWN[name].rate(step, BASE) for step in range(STEPS + 1)])
    return STORED[f"{name}/lr"]


def close(given: list[float], expected: list[float]) -> None:
    # Where torch arrives at 0 step by step, it is off by what rounding left.
    np.testing.assert_allclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE * 1e-2 * BASE)


def kill_coordinator(fleet: stepd.LocalFleet) -> None:
    old = fleet.coordinator.pid
    os.kill(old, signal.SIGKILL)
    eventually(lambda: fleet.coordinator.pid != old, "the coordinator is started again")


def test_rates_and_momenta_are_torchs_at_every_step() -> None:
    """What steps make of parameters is known from torch's rates and momenta: those are what the servers stepped by."""
    names = list(SCHEDULES)
    expected = [[float(rates(name)[step]) for name in names] for step in range(STEPS + 1)]
    momenta = {name: STORED.get(f"{name}/momentum", np.full(STEPS + 1, MOMENTUM)) for name in names}
    groups = [stepd.ParamGroup({name: np.zeros(2)}, schedule=each) for name, each in SCHEDULES.items()]
    grads = {name: np.ones(2) for name in names}
    buffers, params = np.zeros(len(names)), np.zeros(len(names))
    with stepd.local(2) as fleet, stepd.connect(fleet.target) as client:
        run = client.create_run("rates", groups, optimizer=stepd.SGD(lr=BASE, momentum=MOMENTUM))
        with run.join() as worker:
            for step in range(STEPS):
                for index, name in enumerate(names):
                    if name in SCHEDULE_CASES and SCHEDULE_CASES[name].set_at == step:
                        run.set_lr(SCHEDULE_CASES[name].set_to, group=index)
                close(run.get_lr(), expected[step])
                result = worker.step(grads)
                close(result.lr, expected[step])
                by = np.array([1.0 if step == 0 else momenta[name][step] for name in names])
                buffers = by * buffers + 1
                params -= expected[step] * buffers
                found = [result.params[name][0] for name in names]
                np.testing.assert_allclose(found, params, rtol=10 * TOLERANCE)
                if step == KILLED_AT:
                    kill_coordinator(fleet)
            close(run.get_lr(), expected[STEPS])
            assert run.step_count == STEPS


def test_plateaus_are_torchs() -> None:
    """Also when a report is no number, a rate is set in the middle, and the coordinator is killed."""
    names = list(PLATEAU_CASES)
    expected = np.stack([STORED[f"{name}/lr"] for name in names], axis=1)
    expected[SET_AT:, SET] *= SET_TO / expected[SET_AT, SET]
    groups = [
        stepd.ParamGroup({name: np.zeros(1)}, schedule=stepd.ReduceOnPlateau(**arguments))
        for name, arguments in PLATEAU_CASES.items()
    ]
    with stepd.local(1) as fleet, stepd.connect(fleet.target) as client:
        run = client.create_run("plateaus", groups, optimizer=stepd.SGD(lr=BASE))
        with run.join() as worker:
            for step, wanted in enumerate(expected):
                worker.report(loss=metric(step))
                if step == KILLED_AT:
                    kill_coordinator(fleet)
                if step % 10 == 9 or step == SET_AT:
                    # Reports are on their way for a moment.
                    by_then = wanted if step != SET_AT else [STORED[f"{name}/lr"][step] for name in names]
                    eventually(lambda by=by_then: run.get_lr() == pytest.approx(by, rel=TOLERANCE), f"report {step}")
                    if step == SET_AT:
                        run.set_lr(SET_TO, group=SET)
                    close(run.get_lr(), list(wanted))
                    close(worker.step({name: np.ones(1) for name in names}).lr, list(wanted))
