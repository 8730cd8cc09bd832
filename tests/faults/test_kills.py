"""A training run whose servers are killed all the time ends with the bits of one that was left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import stepd
from tests.faults.killing import Killer
from tests.faults.roles import Fleet
from tests.faults.trainees import Event, Trainees

WORKERS = 3
LEASE_S = 4.0
SHAPES = {"embedding": (600, 256), "hidden": (256, 256), "bias": (256,), "head": (256, 100)}
# Of the results of a step, those that may not depend on what happened meanwhile.
RESULT = ("step", "lr", "norm", "scale", "skipped", "digest")

SENT, SHARED, MIXED = ("grpc",) * WORKERS, ("shm",) * WORKERS, ("grpc", "shm", "shm")


def create(target: str, name: str) -> None:
    rng = np.random.default_rng(7)
    with stepd.connect(target) as client:
        client.create_run(
            name,
            {key: rng.standard_normal(shape, np.float32) for key, shape in SHAPES.items()},
            optimizer=stepd.AdamW(lr=3e-3, weight_decay=0.02),
            schedule=stepd.Cosine(total_steps=20_000, warmup_steps=50, min_lr=1e-5),
            clip=stepd.ClipNorm(1.0),
            sync=stepd.Sync(workers=WORKERS, deterministic=True),
        )


def state(target: str, name: str) -> dict[str, bytes]:
    """Every bit of a run: parameters and buffers."""
    with stepd.connect(target, transport="grpc") as client:
        run = client.run(name)
        bits = {key: array.tobytes() for key, array in run.pull().items()}
        for id_, buffers in run.state_dict()["state"].items():
            bits |= {f"{id_}.{key}": np.asarray(value).tobytes() for key, value in buffers.items()}
        return bits


def undisturbed(fleet: Fleet, folder: Path, steps: int) -> tuple[dict[str, bytes], dict[int, Event]]:
    """What so many steps come to, and what worker 0 is told of each."""
    name = "calm"
    create(fleet.target, name)
    with Trainees(folder, fleet.target, name, pause=0.0) as trainees:
        first, *_ = trainees.start(*range(WORKERS))
        trainees.finish(steps)
        return state(fleet.target, name), {told["step"]: told for told in first.steps}


def same(told: Event, expected: Event) -> bool:
    return {key: told[key] for key in RESULT} == {key: expected[key] for key in RESULT}


def endure(
    start: Callable[..., Fleet],
    folder: Path,
    disturb: Callable[[Killer], bool],
    *,
    seed: int,
    transports: tuple[str, ...],
) -> None:
    """Train while `disturb` is called until it says that it was enough; then as much where nothing is disturbed."""
    fleet, name = start(3, "disturbed"), "endures"
    create(fleet.target, name)
    with Trainees(folder, fleet.target, name, retry_for=90.0, timeout=10.0, lease=LEASE_S) as trainees:
        for rank, transport in enumerate(transports):
            trainees.start(rank, transport=transport)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "every worker has begun")
        killer = Killer(fleet, trainees, seed)
        while not disturb(killer):
            killer.go_on()
        steps = trainees.finish()
        told = {worker.rank: worker.steps for worker in trainees.workers}
    ended = state(fleet.target, name)
    print("; ".join(killer.done))  # noqa: T201 (shown when it fails)
    fleet.stop()

    calm, expected = undisturbed(start(1, "calm"), folder, steps)
    about = "; ".join(killer.done)
    for rank in range(WORKERS):
        seen = [result["step"] for result in told[rank]]
        first = seen[0] if rank in killer.struck else 1
        assert seen == list(range(first, steps + 1)), f"rank {rank}: {about}"
        wrong = [result for result in told[rank] if not same(result, expected[result["step"]])]
        assert not wrong, f"rank {rank} from step {wrong[0]['step']}: {wrong[0]}, {about}"
        assert {result["receipt"] for result in told[rank]} <= {"accepted", "duplicate"}, about
    assert ended == calm, about


@pytest.mark.timeout(300)
def test_a_dozen_kills_of_servers_change_no_bit(start: Callable[..., Fleet], tmp_path: Path) -> None:
    """Of shards and coordinator, in every phase of a step."""

    def disturb(killer: Killer) -> bool:
        killer.strike_servers()
        return killer.kills >= 12

    endure(start, tmp_path, disturb, seed=1, transports=MIXED)


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_workers_and_the_whole_fleet_are_killed(start: Callable[..., Fleet], tmp_path: Path) -> None:
    """Who takes a dead worker's place goes on for it; a fleet that was killed whole goes on where it was."""
    blows = [Killer.strike_worker, Killer.strike_all, Killer.strike_worker, Killer.strike_all]

    def disturb(killer: Killer) -> bool:
        blows.pop()(killer)
        return not blows

    endure(start, tmp_path, disturb, seed=2, transports=MIXED)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("transports", [SENT, SHARED], ids=["sent", "shared"])
@pytest.mark.parametrize("seed", [1000, 1001])
def test_hundreds_of_kills_change_no_bit(
    start: Callable[..., Fleet], tmp_path: Path, seed: int, transports: tuple[str, ...]
) -> None:
    blows = 0

    def disturb(killer: Killer) -> bool:
        nonlocal blows
        blows += 1
        if blows % 8 == 0:
            killer.strike_worker()
        elif blows % 25 == 0:
            killer.strike_all()
        else:
            killer.strike_servers()
        return killer.kills >= 100

    endure(start, tmp_path, disturb, seed=seed, transports=transports)
