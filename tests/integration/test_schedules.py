"""Schedules that are more than a rate by step, through the wire: with a momentum, or with metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

import stepd
from stepd.rules import Rule
from stepd.schedules import Schedule
from tests.patience import PATIENCE_S
from tests.reference.cases import SMALL, Case, gradient, initial
from tests.unit.one_process import Tensor

STEPS = 25


@pytest.mark.parametrize("schedule", [stepd.OneCycle(0.1, 20), stepd.Cyclic(0.01, 0.1, 4)], ids=repr)
@pytest.mark.parametrize("rule", [stepd.SGD(0.1), stepd.AdamW(0.1), stepd.RMSprop(0.1)], ids=lambda r: type(r).__name__)
def test_steps_take_the_momentum_of_their_schedule(
    fleets: Callable[[int], stepd.LocalFleet], name: str, rule: Rule, schedule: Schedule
) -> None:
    """Also of rules that were given none; the bits of one process that sets rate and momentum by hand."""
    case = Case("own", "float64", type(rule).__name__, {}, shapes=SMALL)
    with stepd.connect(fleets(3).target) as client:
        run = client.create_run(name, initial(case), optimizer=rule, schedule=schedule, sync=stepd.Sync(workers=1))
        alone = {key: Tensor(rule.cycled(0.9), value, key) for key, value in initial(case).items()}
        with run.join() as worker:
            params = worker.pull()
            for step in range(STEPS):
                grads = gradient(case, step, params)
                momentum = schedule.momentum(step)
                assert momentum is not None
                assert run.get_lr() == [schedule.rate(step, rule.lr)]
                for key, grad in grads.items():
                    alone[key].rule = rule.cycled(momentum)
                    alone[key].update(np.array(grad).reshape(-1), schedule.rate(step, rule.lr), [])
                params = worker.step(grads).params
                for key, value in params.items():
                    assert value.tobytes() == alone[key].p.tobytes(), (step, key)
        run.delete()


def test_a_live_run_takes_a_cycle_only_with_buffers_for_it(client: stepd.Client, name: str) -> None:
    params = {"w": np.zeros(3, np.float32)}
    plain = client.create_run(f"{name}-0", params, optimizer=stepd.SGD(0.1))
    with pytest.raises(stepd.InvalidArgument, match="OneCycle cycles the momentum, and SGD was given none"):
        plain.update(schedule=stepd.OneCycle(0.1, 10))
    plain.update(schedule=stepd.OneCycle(0.1, 10, cycle_momentum=False))
    with_momentum = client.create_run(f"{name}-1", params, optimizer=stepd.SGD(0.1, momentum=0.9))
    with_momentum.update(schedule=stepd.OneCycle(0.1, 10))


def test_a_rate_falls_when_reports_do_not_get_better(client: stepd.Client, name: str) -> None:
    """Each report counts, however fast they come."""
    schedule = stepd.ReduceOnPlateau(patience=2, factor=0.5)
    params = {"w": np.zeros(3, np.float32)}
    run = client.create_run(name, params, optimizer=stepd.SGD(0.4), schedule=schedule)
    with run.join() as worker:
        for loss in (1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5):  # bad from the third on: reduced at the fifth, the eighth
            worker.report(loss=loss, accuracy=0.5)
        deadline = time.monotonic() + PATIENCE_S
        while run.get_lr() != [0.1] and time.monotonic() < deadline:
            time.sleep(0.05)
        result = worker.step({"w": np.ones(3, np.float32)})
        assert result.lr == [0.1]
        run.set_lr(0.3)
        assert run.get_lr() == [0.3]
