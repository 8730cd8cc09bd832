"""Links that are cut, stalled, delayed and throttled, and answers that are lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import stepd
from tests.faults.proxy import DEAF, STALLED, Conditions, Proxy, Way
from tests.faults.roles import Fleet
from tests.faults.trainees import Trainees, check_order, counted, without_a_lost_one
from tests.integration.servers import eventually
from tests.patience import PATIENCE_S

LEASE_S = 4.0
ELEMENTS = 400_000
MIDDLE_BYTES = 300_000
FEW_BYTES = 300
# A pull of a third of it does not disappear in the buffers of connections.
LARGE = 6_000_000


def create(client: stepd.Client, name: str, workers: int | None = 2, elements: int = ELEMENTS) -> stepd.Run:
    return client.create_run(
        name,
        {"w": np.zeros(elements, np.float32)},
        optimizer=stepd.SGD(lr=1.0),
        sync=stepd.Sync(workers=workers, reduce="sum"),
    )


def proxies(fleet: Fleet) -> list[Proxy]:
    return [role.proxy for role in fleet.roles if role.proxy is not None]


def check_all_counted_once(trainees: Trainees) -> None:
    for worker in trainees.workers:
        check_order(worker.steps)
        who = counted(worker.steps, 0.0)
        assert all(ranks == [w.rank for w in trainees.workers] for ranks in who.values()), who


over_both = pytest.mark.parametrize("transport", ["grpc", pytest.param("shm", marks=pytest.mark.slow)])


def middle(transport: str) -> int:
    """Bytes of a link by which a step is under way: where memory is shared, few go through it."""
    return MIDDLE_BYTES if transport == "grpc" else FEW_BYTES


@over_both
def test_cuts_anywhere_in_a_step_are_not_seen(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path, transport: str
) -> None:
    """Connections are reset at exact bytes, within pushes, pulls, and calls of coordinator and shards."""
    create(client, name)
    rng = random.Random(5)
    options = {"gradient": "digit", "retry_for": PATIENCE_S, "transport": transport}
    with Trainees(tmp_path, fleet.target, name, **options) as trainees:
        trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        for _ in range(12):
            cut = threading.Event()
            proxy, way = rng.choice(proxies(fleet)), rng.choice(list(Way))
            # Of the coordinator's link there are not so many bytes.
            size = 300 if proxy is fleet.coordinator.proxy else middle(transport)

            def cut_it(proxy: Proxy = proxy, cut: threading.Event = cut) -> None:
                proxy.cut()
                cut.set()

            proxy.after(rng.randint(1, size), way, cut_it)
            trainees.wait(cut.is_set, "the link is cut")
            trainees.await_steps(1)
        trainees.finish()
        check_all_counted_once(trainees)


@over_both
def test_a_lost_answer_to_a_push_counts_once(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path, transport: str
) -> None:
    create(client, name, elements=1000)
    options = {"gradient": "digit", "retry_for": PATIENCE_S, "transport": transport}
    with Trainees(tmp_path, fleet.target, name, **options) as trainees:
        other, deaf = trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        for _ in range(3):
            for proxy in proxies(fleet):
                proxy.have(DEAF, of=deaf.pid)
            heard = deaf.step
            # Its contribution arrives, and the round is decided: the other one sees it.
            trainees.wait(
                lambda heard=heard: other.step > max(heard, deaf.step), "one hears of a step that the other does not"
            )
            for proxy in proxies(fleet):
                proxy.cut(of=deaf.pid)
                proxy.clear()
            trainees.await_steps(2)
        trainees.finish()
        check_all_counted_once(trainees)


def test_lost_answers_of_the_coordinator_change_nothing_twice(fleet: Fleet, name: str) -> None:
    """Creating, joining, changing the rate, leaving and deleting, each with its first answers lost."""
    proxy = fleet.coordinator.proxy
    assert proxy is not None

    def lose_answers() -> None:
        """From now on until some bytes have gone up, which no answer came to."""

        def cut() -> None:
            proxy.cut(of=os.getpid())
            proxy.clear()

        proxy.have(DEAF, of=os.getpid())
        proxy.after(150, Way.UP, lambda: threading.Timer(0.3, cut).start(), of=os.getpid())

    with stepd.connect(fleet.target, timeout=5.0, retry_for=PATIENCE_S) as client:
        client.fleet()
        lose_answers()
        run = create(client, name, elements=1000)
        lose_answers()
        worker = run.join(lease=20.0)
        assert [(w.id, w.rank) for w in run.info().workers] == [(worker.id, 0)]
        lose_answers()
        run.set_lr(0.5)
        assert run.get_lr() == [0.5]
        lose_answers()
        worker.leave()
        eventually(lambda: run.info().workers == [], "it has left")
        lose_answers()
        run.delete()
        assert name not in [info.name for info in client.runs()]
        again = create(client, name, elements=1000)
        assert again.step_count == 0


@over_both
def test_a_worker_whose_links_stall_leaves_within_its_lease(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path, transport: str
) -> None:
    """All of its links, in the middle of a pull: the connections stay, and nothing comes through."""
    create(client, name, workers=None, elements=LARGE)
    options = {"gradient": "digit", "retry_for": PATIENCE_S, "transport": transport}
    with Trainees(tmp_path, fleet.target, name, lease=LEASE_S, **options) as trainees:
        other, stuck = (*trainees.start(0), *trainees.start(1, rejoin=True))
        trainees.wait(lambda: all(len(w.steps) > 2 for w in trainees.workers), "all have begun")
        at: list[float] = []

        def stall() -> None:
            for proxy in proxies(fleet):
                proxy.have(STALLED, of=stuck.pid)
            at.append(time.monotonic())

        proxies(fleet)[2].after(middle(transport), Way.DOWN, stall, of=stuck.pid)

        def alone() -> list[float]:
            who = counted(other.steps)
            return [told["at"] for told in other.steps[1:] if at and told["at"] > at[0] and who[told["step"]] == [0]]

        trainees.wait(alone, "the other one goes on alone")
        # The round in which it was lost starts over: one step more than what the lease takes.
        before = [told for told in other.steps if told["at"] < at[0]]
        assert alone()[0] - at[0] < without_a_lost_one(LEASE_S, before)
        fleet.heal()
        trainees.await_steps(2)  # it has its place back by itself
        trainees.finish()
        check_order(other.steps)
        assert all(len(set(ranks)) == len(ranks) for ranks in counted(other.steps).values())


@pytest.mark.slow
def test_a_shard_whose_links_stall_holds_up_and_loses_nothing(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path
) -> None:
    create(client, name)
    proxy = fleet.shards[1].proxy
    assert proxy is not None
    with Trainees(tmp_path, fleet.target, name, gradient="digit", retry_for=PATIENCE_S) as trainees:
        trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        for way in Way:
            stalled = threading.Event()

            def stall(stalled: threading.Event = stalled) -> None:
                proxy.have(STALLED)
                stalled.set()

            proxy.after(MIDDLE_BYTES, way, stall)
            trainees.wait(stalled.is_set, "the links stall")
            at = [worker.step for worker in trainees.workers]
            time.sleep(1.0)  # nothing is to happen meanwhile, for which there is no event
            assert all(w.step <= before + 1 for w, before in zip(trainees.workers, at, strict=True))
            proxy.have(Conditions())
            trainees.await_steps(2)
        trainees.finish()
        check_all_counted_once(trainees)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_shard_that_is_cut_off_for_long_is_found_again(
    fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path
) -> None:
    """So long that connections are given up."""
    create(client, name)
    proxy = fleet.shards[1].proxy
    assert proxy is not None
    with Trainees(tmp_path, fleet.target, name, gradient="digit", retry_for=120.0) as trainees:
        trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        proxy.have(STALLED)
        time.sleep(25)
        proxy.have(Conditions())
        trainees.await_steps(2)
        trainees.finish()
        check_all_counted_once(trainees)


def test_a_stopped_shard_is_named_and_waited_for(fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path) -> None:
    run = create(client, name)
    with Trainees(tmp_path, fleet.target, name, gradient="digit", retry_for=PATIENCE_S) as trainees:
        trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        fleet.shards[2].signal(signal.SIGSTOP)
        eventually(lambda: run.info().status == "recovering", "the shard is missed")
        assert "shard 2" in str(run.info().problem)
        fleet.shards[2].signal(signal.SIGCONT)
        trainees.await_steps(2)
        trainees.finish()
        check_all_counted_once(trainees)


@pytest.mark.slow
def test_slow_links_are_only_slow(fleet: Fleet, client: stepd.Client, name: str, tmp_path: Path) -> None:
    create(client, name)
    with Trainees(tmp_path, fleet.target, name, lease=LEASE_S, gradient="digit", retry_for=PATIENCE_S) as trainees:
        _, slow = trainees.start(0, 1)
        trainees.wait(lambda: all(w.steps for w in trainees.workers), "all have begun")
        for proxy in proxies(fleet):
            proxy.have(Conditions(delay_s=0.05, bytes_per_s=2e6), of=slow.pid)
        trainees.await_steps(3)
        fleet.heal()
        trainees.finish()
        check_all_counted_once(trainees)
