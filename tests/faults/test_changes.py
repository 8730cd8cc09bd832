"""Servers die in the middle of what an owner or a worker asks for besides steps: it comes about, and only once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

import stepd
from tests.faults.roles import Fleet

SHAPES = {"w": (700, 300), "b": (300,)}
# A change takes at least so many lines of the functions below on each role.
LINES = 12


def values(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def check_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@contextmanager
def training(client: stepd.Client, name: str) -> Iterator[tuple[stepd.Run, stepd.Worker]]:
    """A run with a worker that has taken a step."""
    run = client.create_run(name, values(0), optimizer=stepd.AdamW(lr=0.01))
    with run.join(lease=60.0) as worker:
        worker.step(values(1))
        yield run, worker


Disturb = Callable[[], None]
Change = Callable[[stepd.Client, str, Disturb], None]


def create(client: stepd.Client, name: str, disturb: Disturb) -> None:
    disturb()
    run = client.create_run(name, values(0), optimizer=stepd.SGD(lr=1.0))
    check_same(run.pull(), values(0))
    assert [info.name for info in client.runs()].count(name) == 1
    with run.join() as worker:
        assert worker.step(values(0)).step == 1
    for value in run.pull().values():
        assert not value.any()


def join(client: stepd.Client, name: str, disturb: Disturb) -> None:
    run = client.create_run(name, values(0), optimizer=stepd.SGD(lr=1.0))
    disturb()
    with run.join(lease=60.0) as worker:
        assert [(w.id, w.rank) for w in run.info().workers] == [(worker.id, 0)]
        assert worker.step(values(0)).step == 1


def leave(client: stepd.Client, name: str, disturb: Disturb) -> None:
    with training(client, name) as (run, worker):
        disturb()
        worker.leave()
        assert run.info().workers == []


def add_group(client: stepd.Client, name: str, disturb: Disturb) -> None:
    new = values(2, {"new": (400, 300)})
    with training(client, name) as (run, worker):
        before = run.pull()
        disturb()
        run.add_param_group(stepd.ParamGroup(new, lr=1.0))
        check_same(run.pull(), before | new)
        result = worker.step(values(3) | values(4, {"new": (400, 300)}))
        assert result.step == 2
        assert len(result.lr) == 2


def load_state(client: stepd.Client, name: str, disturb: Disturb) -> None:
    with training(client, name) as (run, worker):
        then = run.state_dict()
        worker.step(values(2))
        disturb()
        run.load_state_dict(then)
        now = run.state_dict()
        for id_, buffers in then["state"].items():
            for key, value in buffers.items():
                np.testing.assert_array_equal(now["state"][id_][key], value, err_msg=f"{id_}.{key}")
        assert worker.step(values(3)).step == 3


def set_lr(client: stepd.Client, name: str, disturb: Disturb) -> None:
    with training(client, name) as (run, worker):
        disturb()
        run.set_lr(0.5)
        assert worker.step(values(2)).lr == [0.5]


def delete(client: stepd.Client, name: str, disturb: Disturb) -> None:
    client.create_run(name, values(0), optimizer=stepd.SGD(lr=1.0))
    disturb()
    client.run(name).delete()
    assert name not in [info.name for info in client.runs()]
    # Shards hold nothing of the old one either.
    check_same(client.create_run(name, values(1), optimizer=stepd.SGD(lr=1.0)).pull(), values(1))


@dataclass(frozen=True)
class Case:
    """A change, and by role the functions that carry it out."""

    change: Change
    coordinator: str
    shard: str = ""


STORE = r"coordinator/(store|slots)\.py:"
CASES = {
    "create": Case(
        create,
        rf"coordinator/runs\.py:Runs\.(create|start|_open)|{STORE}",
        r"shard/(loading|arena|files)\.py:|service\.py:ShardService\.(PrepareRun|SealRun)",
    ),
    "join": Case(join, rf"coordinator/(run\.py:Run\.(join|_write_member)|membership\.py:Membership\.join)|{STORE}"),
    "leave": Case(leave, r"coordinator/(run\.py:Run\.(leave|_forget)|membership\.py:Membership\.(leave|_remove))"),
    "add_group": Case(
        add_group,
        rf"coordinator/(extend|extension|run\.py:Run\.(extend|_settle)|runs\.py:Runs\.(add|commit)_group)|{STORE}",
        r"shard/(extending|loading|files)\.py:|service\.py:(stage|ShardService\.(ExtendRun|SettleExtension))",
    ),
    "load_state": Case(
        load_state,
        rf"coordinator/(run\.py:Run\.load_state|runs\.py:Runs\.(load_state|_decide_state))|{STORE}",
        r"shard/staging\.py:Staging\.(stage|_receive|hold|commit|_commit|_carry_out)",
    ),
    "set_lr": Case(set_lr, rf"coordinator/(changes\.py:|run\.py:Run\.(update|_change))|{STORE}"),
    "delete": Case(
        delete,
        rf"coordinator/runs\.py:Runs\.(delete|_delete|_bury|_sweep)|{STORE}",
        r"shard/(service\.py:ShardService\.(DropRun|_drop)|run\.py:ShardRun\.close|(arena|pulling|staging)\.py:)",
    ),
}
PLACES = [(name, role) for name, case in CASES.items() for role in ("coordinator", "shard") if getattr(case, role)]


def strike(fleet: Fleet, case: Case, role: str, lines: int, name: str) -> bool:
    """Have a change made in which a role dies after so many lines; whether it did."""
    victim = fleet.coordinator if role == "coordinator" else fleet.shards[1]
    deaths = victim.deaths
    with stepd.connect(fleet.target, timeout=10.0, retry_for=120.0) as client:
        case.change(client, name, lambda: victim.doom(getattr(case, role), lines))
    victim.pardon()
    fleet.await_ready()
    return victim.deaths > deaths


@pytest.mark.parametrize(("change", "role"), PLACES)
def test_a_death_in_the_middle_of_a_change_is_not_seen(fleet: Fleet, name: str, change: str, role: str) -> None:
    lines = random.Random(f"{change} {role}").randint(1, LINES)
    assert strike(fleet, CASES[change], role, lines, name), f"nobody died; {lines} lines"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("change", "role"), PLACES)
def test_deaths_anywhere_in_changes_are_not_seen(fleet: Fleet, name: str, change: str, role: str) -> None:
    """Line by line at first, and then ever farther, until the change is over before."""
    lines, at = 1, 0
    while strike(fleet, CASES[change], role, lines, f"{name}-{at}"):
        lines, at = lines + 1 + lines // 8, at + 1
    assert lines > LINES, f"nobody died after {lines} lines"
