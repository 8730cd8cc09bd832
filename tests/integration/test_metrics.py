"""The metrics of a real fleet, in one scrape, and docs/metrics.md."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import stepd
from stepd_server.metrics import catalogue
from tests.integration.servers import Server, eventually
from tests.integration.training import at_once
from tests.patience import PATIENCE_S

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
SIZE = 200_000
STEPS = 4


class Fleet(NamedTuple):
    target: str
    metrics: str
    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "fleet.json").read_text())
        return state

    def scrape(self) -> Scrape:
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=PATIENCE_S) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return Scrape(answer.read().decode())


class Scrape:
    """One text, read by Prometheus' own parser."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self.families for sample in family.samples]

    def all(self, name: str, **labels: str) -> list[float]:
        """The values of all series of a name with these labels."""
        return [s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()]

    def one(self, name: str, **labels: str) -> float:
        (value,) = self.all(name, **labels)
        return value

    def labels_of(self, name: str) -> set[tuple[str, ...]]:
        return {tuple(sorted(s.labels)) for s in self._samples if s.name == name}

    def runs(self) -> set[str]:
        return {s.labels["run"] for s in self._samples if "run" in s.labels}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    flags = ("--listen=127.0.0.1:0", "--shards=2", f"--data-dir={folder}", "--json")
    with Server("serve", *flags, environ={"STEPD_SERVER_METRICS": "127.0.0.1:0"}) as server:
        said = server.event(event="listening", role="fleet")
        yield Fleet(said["target"], said["metrics"], folder)


@pytest.fixture
def client(fleet: Fleet) -> Iterator[stepd.Client]:
    with stepd.connect(fleet.target, retry_for=PATIENCE_S) as client:
        yield client


def create(client: stepd.Client, name: str, **options: object) -> stepd.Run:
    options = {"optimizer": stepd.AdamW(lr=1e-3), "sync": stepd.Sync(workers=2), **options}
    return client.create_run(name, {"w": np.zeros(SIZE, np.float32)}, **options)


def steps(workers: list[stepd.Worker], count: int, value: float = 1.0) -> None:
    def work(index: int) -> None:
        for _ in range(count):
            workers[index].step({"w": np.full(SIZE, value, np.float32)})

    at_once(work, len(workers))


def test_the_address_is_in_the_fleets_file(fleet: Fleet) -> None:
    assert fleet.state["metrics"] == fleet.metrics


def test_what_was_trained_is_counted(fleet: Fleet, client: stepd.Client) -> None:
    schedule = stepd.Linear(total_steps=100)
    run = create(client, "counted", clip=stepd.ClipNorm(1.0), schedule=schedule, average=stepd.EMA(0.9))
    with run.join() as ann, run.join() as bob:
        steps([ann, bob], STEPS)
        steps([ann, bob], 1, np.nan)
        # The last reader may still be on its way out.
        eventually(lambda: set(phases(fleet.scrape(), "send")) == {STEPS}, "all steps are sent")
        seen = fleet.scrape()
    assert seen.one("stepd_steps_total", run="counted") == STEPS
    assert seen.one("stepd_clipped_steps_total", run="counted") == STEPS
    assert seen.one("stepd_skipped_steps_total", run="counted", reason="nonfinite") == 1
    assert sum(seen.all("stepd_skipped_steps_total", run="counted")) == 1
    assert np.isnan(seen.one("stepd_grad_norm", run="counted"))
    assert seen.one("stepd_learning_rate", run="counted", group="0") == schedule.rate(STEPS, 1e-3)
    assert seen.one("stepd_workers", run="counted") == 2
    assert seen.one("stepd_contributions_total", run="counted", status="accepted") == 2 * (STEPS + 1)
    for rank in "01":
        accepted = seen.one("stepd_worker_contributions_total", run="counted", rank=rank, status="accepted")
        assert accepted == STEPS + 1
        assert seen.one("stepd_worker_lag_steps", run="counted", rank=rank) == 0
        assert seen.one("stepd_worker_wait_seconds_total", run="counted", rank=rank) > 0
    for phase in ("receive", "wait", "reduce"):
        assert phases(seen, phase) == [STEPS + 1] * 2
    assert phases(seen, "apply") == [STEPS] * 2
    sizes = {kind: sum(seen.all("stepd_state_bytes", run="counted", kind=kind)) for kind in KINDS}
    assert sizes == {kind: 4 * SIZE * (2 if kind == "buffers" else 1) for kind in KINDS}
    # Parameters in once, gradients in and parameters out for each worker and step; and what frames them.
    assert 1 < sum(seen.all("stepd_bytes_total", direction="in")) / (4 * SIZE * (1 + 2 * (STEPS + 1))) < 1.1
    assert 1 < sum(seen.all("stepd_bytes_total", direction="out")) / (4 * SIZE * 2 * (STEPS + 1)) < 1.1
    assert set(seen.all("stepd_up")) == {1}


KINDS = ("parameters", "buffers", "accumulator", "average")


def phases(seen: Scrape, phase: str) -> list[float]:
    """By shard: how many values."""
    return seen.all("stepd_step_seconds_count", run="counted", phase=phase)


def test_the_page_names_what_there_is(fleet: Fleet, client: stepd.Client) -> None:
    """By name, type and labels: page, catalogue, and what a fleet tells."""
    run = create(client, "page", sync=stepd.Sync(workers=1))
    with run.join() as worker:
        steps([worker], 1)
        seen = fleet.scrape()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `stepd_")
    ]
    page = {row[0].strip("`"): (row[1], tuple(sorted(re.findall(r"`(\w+)`", row[2])))) for row in rows}
    assert page == {metric.name: (metric.kind, tuple(sorted(metric.labels))) for metric in catalogue.ALL}
    told = {}
    for family in seen.families:
        name = family.name + "_total" * (family.type == "counter")
        ((labels),) = seen.labels_of(f"{name}_sum" if family.type == "histogram" else name)
        told[name] = (family.type, labels)
        assert family.documentation
    assert told == page


def test_the_page_names_every_value_of_a_label(fleet: Fleet, client: stepd.Client) -> None:
    text = PAGE.read_text()
    create(client, "values", average=stepd.EMA(0.9))
    for family in fleet.scrape().families:
        for sample in family.samples:
            for label in {"reason", "status", "phase", "kind", "direction", "transport"} & sample.labels.keys():
                assert f"`{sample.labels[label]}`" in text


def test_a_scrape_is_answered_while_steps_run(fleet: Fleet, client: stepd.Client) -> None:
    run = create(client, "busy", sync=stepd.Sync(workers=1))
    with run.join() as worker:
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                steps([worker], 1)

        stepping = threading.Thread(target=work)
        stepping.start()
        try:
            seen = [fleet.scrape() for _ in range(10)]
            eventually(lambda: fleet.scrape().one("stepd_steps_total", run="busy") > 5, "steps go on")
        finally:
            stop.set()
            stepping.join()
    counts = [scrape.one("stepd_steps_total", run="busy") for scrape in seen]
    assert counts == sorted(counts)
    assert all(set(scrape.all("stepd_up")) == {1} for scrape in seen)


def test_what_is_gone_has_no_series(fleet: Fleet, client: stepd.Client) -> None:
    run = create(client, "gone", sync=stepd.Sync(workers=1))
    with run.join() as worker:
        steps([worker], 1)
        assert fleet.scrape().all("stepd_worker_lag_steps", run="gone") == [0]
    assert fleet.scrape().all("stepd_worker_lag_steps", run="gone") == []
    assert fleet.scrape().all("stepd_worker_contributions_total", run="gone") == []
    assert fleet.scrape().one("stepd_steps_total", run="gone") == 1
    run.delete()
    assert "gone" not in fleet.scrape().runs()


def test_a_fleet_without_the_flag_opens_no_port(tmp_path: Path) -> None:
    with Server("serve", "--listen=127.0.0.1:0", f"--data-dir={tmp_path}", "--json") as server:
        said = server.event(event="listening", role="fleet")
        assert "metrics" not in said
        assert "metrics" not in json.loads((tmp_path / "fleet.json").read_text())


def test_a_restarted_shard_is_in_the_scrape_again(fleet: Fleet, client: stepd.Client) -> None:
    run = create(client, "restarted", sync=stepd.Sync(workers=1))
    with run.join() as worker:
        steps([worker], 2)
        applied = {"run": "restarted", "phase": "apply", "shard": "1"}
        eventually(lambda: fleet.scrape().one("stepd_step_seconds_count", **applied) == 2, "nothing is under way")
        victim = fleet.state["shards"][1]["pid"]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: fleet.state["shards"][1]["pid"] != victim, "another process has its place")
        eventually(lambda: set(fleet.scrape().all("stepd_up")) == {1}, "all answer again")
        steps([worker], 1)
        seen = fleet.scrape()
    assert seen.one("stepd_steps_total", run="restarted") == 3
    assert seen.one("stepd_step_seconds_count", run="restarted", phase="apply", shard="0") == 3
    assert seen.one("stepd_step_seconds_count", **applied) == 1


def test_people_are_told_where_metrics_are() -> None:
    with Server("coordinator", "--listen=127.0.0.1:0", "--shards=1", "--metrics=127.0.0.1:0") as server:
        said = re.fullmatch(r"stepd coordinator: listening on \S+, metrics on (http://\S+/metrics)", server.line())
        assert said
        with urllib.request.urlopen(said[1], timeout=PATIENCE_S) as answer:
            assert answer.status == 200
