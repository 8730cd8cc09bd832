"""What the fleet cannot carry out is refused when a run is created, with what it can."""

from __future__ import annotations

import numpy as np
import pytest

from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.errors import InvalidArgument, ResourceExhausted
from stepd.limits import WHOLE_ELEMENTS_MAX
from stepd.rules import LAMB, LARS, SGD, Adafactor, Adagrad, AdamW, Muon, RMSprop, Rule, ScheduleFreeAdamW
from stepd.schedules import Constant, Cyclic, OneCycle, Schedule, Sequential
from stepd_server.coordinator.abilities import check_trainable
from stepd_server.coordinator.cycling import cycled


def spec(rule: Rule, schedule: Schedule | None = None, shape: tuple[int, ...] = (4, 4)) -> RunSpec:
    parameter = ParameterSpec("w", shape, np.dtype(np.float32))
    return RunSpec("run", (parameter,), (GroupSpec(rule),), schedule)


@pytest.mark.parametrize("rule", [SGD(), LARS(lr=0.1), LAMB(), Muon(), Adafactor()], ids=lambda r: type(r).__name__)
def test_rules_of_every_reach_are_taken(rule: Rule) -> None:
    check_trainable(spec(rule))


def test_a_parameter_that_its_rule_cannot_update_is_refused() -> None:
    """Muon takes matrices only."""
    with pytest.raises(InvalidArgument, match="parameter 'w': Muon updates matrices only"):
        check_trainable(spec(Muon(), shape=(4,)))


def test_a_tensor_too_large_for_one_shard_is_refused() -> None:
    """Where its rule must see it whole; by name, with its size and the limit. Others may be as large as they like."""
    shape = (WHOLE_ELEMENTS_MAX, 2)
    check_trainable(spec(AdamW(), shape=shape))
    check_trainable(spec(Adafactor(), shape=(WHOLE_ELEMENTS_MAX, 1)))
    with pytest.raises(
        ResourceExhausted, match=f"parameter 'w': Muon sees .* {2**28} elements, got {2**29};"
    ) as caught:
        check_trainable(spec(Muon(), shape=shape))
    assert caught.value.details["parameter"] == "w"


@pytest.mark.parametrize("schedule", [OneCycle(0.1, 100), Cyclic(0.1, 0.2)], ids=lambda s: type(s).__name__)
def test_a_run_begins_with_the_momentum_of_its_schedule(schedule: Schedule) -> None:
    """So that rules that were given none have buffers for it."""
    rules = [cycled(spec(rule, schedule)).groups[0].optimizer for rule in (SGD(), RMSprop(), AdamW())]
    momentum = schedule.momentum(0)
    assert rules == [SGD(momentum=momentum), RMSprop(momentum=momentum), AdamW(betas=(momentum, 0.999))]
    for rule in rules:
        check_trainable(spec(rule, schedule))


def test_a_rule_that_cannot_follow_its_schedule_is_refused() -> None:
    """One without momentum, without buffers for it, or one that some momentum of the cycle does not suit."""
    with pytest.raises(InvalidArgument, match="Adagrad has neither momentum nor betas"):
        check_trainable(spec(Adagrad(), OneCycle(0.1, 100)))
    later = Sequential((Constant(), OneCycle(0.1, 100)), (10,))
    with pytest.raises(InvalidArgument, match="Sequential cycles the momentum, and SGD was given none"):
        check_trainable(cycled(spec(SGD(), later)))
    with pytest.raises(InvalidArgument, match=r"betas\[0\] must be in \(0, 1\)"):
        check_trainable(cycled(spec(ScheduleFreeAdamW(), Cyclic(0.1, 0.2, base_momentum=0))))
    check_trainable(cycled(spec(Adagrad(), OneCycle(0.1, 100, cycle_momentum=False))))
