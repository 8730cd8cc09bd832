"""What the pods of the base run, run here: the same arguments and environments, with ports of this machine for names.

Kubernetes' part (names, volumes, limits) is left out; that the parts of stepd fit together as the manifests put them
together is not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stepd.targets import Target
from stepd_server.ports import HeldPort
from tests.patience import PATIENCE_S

from .manifests import SECRET, Manifests, Workload

# The image's ENTRYPOINT, without an installed script.
STEPD = [sys.executable, "-m", "stepd.cli"]
STEPS = 30
# Of a pod's start-up on a busy machine; the manifests allow more.
START_S = PATIENCE_S
# What listens, by the name of its port.
FLAGS = {"--listen": "grpc", "--health": "health", "--metrics": "metrics"}


class Pods:
    """The processes of a fleet's pods."""

    def __init__(self, manifests: Manifests, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        servers = [(w, i) for w in manifests.servers() for i in range(w.spec["replicas"])]
        self.targets = {
            (w.name, i, name): stack.enter_context(HeldPort(Target("127.0.0.1", 0))).target
            for w, i in servers
            for name in FLAGS.values()
        }
        self._here = {
            f"{w.name}-{i}.{w.spec['serviceName']}:{w.container.ports['grpc']}": self._address(w, i, "grpc")
            for w, i in servers
        }
        self._tokens = folder / "tokens"
        self._tokens.write_text(f"fleet of-the-fleet\nuser {SECRET}\n")
        self._tokens.chmod(0o440)

    def _address(self, w: Workload, ordinal: int, port: str) -> str:
        return str(self.targets[w.name, ordinal, port])

    def start(self, w: Workload, ordinal: int, command: list[str], *more: str) -> subprocess.Popen[str]:
        """Run a pod's container as `command` with its own arguments, and then `more`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("STEPD", "JOB_"))}
        environment = {name: self._here.get(value, value) for name, value in w.environment_of_pod(ordinal).items()}
        process = self._stack.enter_context(
            subprocess.Popen(
                [
                    *command,
                    *(self._translated(argument, w, ordinal) for argument in w.arguments_of_pod(ordinal)),
                    *more,
                ],
                env=kept | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        self._stack.callback(process.kill)
        return process

    def _translated(self, argument: str, w: Workload, ordinal: int) -> str:
        """An argument with the addresses and folders of this machine."""
        flag, equals, value = argument.partition("=")
        if not equals:
            return argument
        here = {
            "--data-dir": str(self._folder / f"{w.name}-{ordinal}"),
            "--tokens": str(self._tokens),
            "--index": str(ordinal),
        }.get(flag, self._here.get(value, value))
        if flag in FLAGS:
            here = self._address(w, ordinal, FLAGS[flag])
        return f"{flag}={here}"

    def scraped(self, w: Workload, ordinal: int) -> str:
        """What Prometheus gets where the annotations send it."""
        assert w.annotations["prometheus.io/port"] == str(w.container.ports["metrics"])
        address = f"http://{self._address(w, ordinal, 'metrics')}{w.annotations['prometheus.io/path']}"
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            text: str = answer.read().decode()
        return text

    def healthy(self, w: Workload, ordinal: int, probe: str) -> bool:
        """Ask as the kubelet does."""
        service = w.container.document[probe]["grpc"].get("service", "")
        with grpc.insecure_channel(self._address(w, ordinal, "health")) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
            except grpc.RpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def pods(manifests: Manifests, tmp_path: Path) -> Iterator[Pods]:
    with ExitStack() as stack:
        yield Pods(manifests, tmp_path, stack)


def _until(happened: Callable[[], bool], processes: Iterable[subprocess.Popen[str]], what: str) -> None:
    end = time.monotonic() + START_S
    while not happened():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"not within {START_S} s: {what}"
        time.sleep(0.05)


def test_fleet_of_the_base_trains_its_demo(manifests: Manifests, pods: Pods) -> None:
    """Shards before the coordinator, as may happen with Parallel; workers to the end; then SIGTERM to each server."""
    started = [
        (w, i, pods.start(w, i, STEPD))
        for w in (manifests.shard, manifests.coordinator)
        for i in range(w.spec["replicas"])
    ]
    for w, i, _ in started:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            _until(partial(pods.healthy, w, i, probe), [process for *_, process in started], f"{probe} of {w.name}-{i}")

    job = manifests.workers
    python = [sys.executable, *job.container.document["command"][1:]]
    workers = [pods.start(job, i, python, f"--steps={STEPS}") for i in range(job.spec["completions"])]
    said = [worker.communicate(timeout=PATIENCE_S)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), said
    assert f"after {STEPS} steps" in said[0]
    assert f'stepd_steps_total{{run="digits"}} {STEPS}.0' in pods.scraped(manifests.coordinator, 0)
    for i in range(manifests.shard.spec["replicas"]):
        assert f'stepd_step_seconds_count{{phase="apply",run="digits",shard="{i}"}}' in pods.scraped(manifests.shard, i)

    for w, _, process in started:
        process.send_signal(signal.SIGTERM)
        sleep = w.container.document["lifecycle"]["preStop"]["sleep"]["seconds"]
        output = process.communicate(timeout=w.pod["terminationGracePeriodSeconds"] - sleep)[0]
        assert process.returncode == 0, output


def test_a_shard_alone_lives_but_is_not_ready(manifests: Manifests, pods: Pods) -> None:
    """Else the kubelet would kill it for the coordinator's absence, again and again."""
    shard = manifests.shard
    process = pods.start(shard, 0, STEPD)
    _until(lambda: pods.healthy(shard, 0, "livenessProbe"), [process], "liveness of a shard alone")
    assert not pods.healthy(shard, 0, "readinessProbe")
