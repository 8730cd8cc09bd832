"""Server processes from outside: what they print, when they refuse, how they end."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import stepd
from tests.integration.servers import Server, eventually
from tests.patience import PATIENCE_S

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
COORDINATOR = ("coordinator", "--listen=127.0.0.1:0", "--shards=1")


def shard(coordinator: str, *flags: str) -> tuple[str, ...]:
    return ("shard", f"--coordinator={coordinator}", "--index=0", "--listen=127.0.0.1:0", *flags)


def health(target: str, service: str = "") -> int:
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status
        return status


def test_a_role_says_in_one_line_what_it_listens_on() -> None:
    with Server(*COORDINATOR) as server:
        text, _, target = server.line().rpartition(" ")
        assert text == "stepd coordinator: listening on"
        assert health(target) == SERVING
    assert server.out.empty()


def test_a_role_says_it_in_json_if_asked(tmp_path: Path) -> None:
    with Server(*COORDINATOR, "--json", f"--data-dir={tmp_path}") as server:
        event = server.event()
        target = event.pop("target")
        assert event == {"event": "listening", "role": "coordinator", "pid": server.pid}
        assert health(target) == SERVING


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_role_ends_cleanly_when_told_to(number: signal.Signals, vacant: str) -> None:
    for argv in (COORDINATOR, shard(vacant)):
        with Server(*argv) as server:
            server.line()
            server.signal(number)
            code, errors = server.ended()
        assert (code, [line for line in errors if "does not know this shard" not in line]) == (0, [])


def test_a_shard_whose_runs_are_led_ends_without_a_word() -> None:
    """The coordinator holds a call open for each; cut off, it would be logged with a traceback."""
    with Server(*COORDINATOR, "--json") as coordinator:
        target = coordinator.event(event="listening")["target"]
        with Server(*shard(target, "--json")) as server, stepd.connect(target) as client:
            server.event(event="registered", role="shard", index=0)
            params = {"w": np.zeros(8, np.float32)}
            run = client.create_run("led", params, optimizer=stepd.SGD(0.1))
            with run.join() as worker:
                worker.step(params)
                server.signal(signal.SIGTERM)
                assert server.ended() == (0, [])


def test_a_role_ends_with_its_lifeline(vacant: str) -> None:
    for argv in (COORDINATOR, shard(vacant)):
        with Server(*argv, "--lifeline") as server:
            server.line()
            server.close_stdin()
            assert server.wait() == 0


def test_a_taken_port_gets_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        for role, argv in {
            "coordinator": ("coordinator", f"--listen={target}", "--shards=1"),
            "shard": ("shard", "--coordinator=127.0.0.1:1", "--index=0", f"--listen={target}"),
        }.items():
            with Server(*argv) as server:
                assert server.ended() == (1, [f"stepd {role}: cannot listen on {target}: address already in use"])
            with Server(*COORDINATOR, f"--health={target}") as server:
                assert server.ended() == (
                    1,
                    [f"stepd coordinator: cannot listen on {target}: address already in use"],
                )


def test_another_server_of_ours_is_in_the_way_as_any_other() -> None:
    with Server(*COORDINATOR, "--json") as first:
        target = first.event()["target"]
        with Server("coordinator", f"--listen={target}", "--shards=1") as second:
            assert second.ended() == (1, [f"stepd coordinator: cannot listen on {target}: address already in use"])


def test_exposure_without_tls_and_tokens_is_refused_in_one_line() -> None:
    for argv in (("serve", "--listen=0.0.0.0:0"), ("coordinator", "--listen=[::]:0", "--shards=1")):
        with Server(*argv) as server:
            code, (line,) = server.ended()
            assert code == 2
            assert line.startswith(f"stepd {argv[0]}: refusing to listen on ")
    with Server(*COORDINATOR[:1], "--listen=0.0.0.0:0", "--shards=1", "--insecure") as server:
        assert server.line().startswith("stepd coordinator: listening on 0.0.0.0:")


def test_a_token_file_open_to_everybody_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("user alice-1\n")
    (tmp_path / "tokens").chmod(0o644)
    with Server("serve", "--listen=127.0.0.1:0", f"--tokens={tmp_path / 'tokens'}") as server:
        code, (line,) = server.ended()
        assert (code, "chmod 600" in line, "alice" in line) == (2, True, False)


def test_a_folder_in_use_is_waited_for_and_then_named(tmp_path: Path) -> None:
    """Waited for, because a restart may come while the process before it is still putting things away."""
    argv = (*COORDINATOR, "--json", f"--data-dir={tmp_path}")
    with Server(*argv) as first:
        first.event(event="listening")
        with Server(*argv) as second:
            assert second.ended() == (
                1,
                [f"stepd coordinator: the folder {tmp_path}/coordinator is in use by another process"],
            )
        with Server(*argv) as third:
            first.signal(signal.SIGTERM)
            third.event(event="listening")


def test_a_shard_is_alive_at_once_and_ready_when_the_coordinator_knows_it(vacant: str) -> None:
    with Server(*shard(vacant, "--health=127.0.0.1:0", "--json")) as server:
        target = server.event(event="listening")["target"]
        assert (health(target), health(target, "stepd.v1.Shard")) == (SERVING, NOT_SERVING)
        argv = ("coordinator", f"--listen={vacant}", "--shards=1", "--json")
        for _ in range(2):  # and again after the coordinator was gone
            with Server(*argv) as coordinator:
                coordinator.event(event="listening")
                server.event(event="registered", role="shard", index=0)
                assert health(target, "stepd.v1.Shard") == SERVING
            eventually(lambda: health(target, "stepd.v1.Shard") == NOT_SERVING, "not ready without its coordinator")
            assert health(target) == SERVING


def test_shutting_down_waits_for_calls_only_so_long() -> None:
    async def watch(target: str, server: Server) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            call = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await call.read()).status == SERVING
            server.signal(signal.SIGTERM)
            assert (await call.read()).status == NOT_SERVING
            assert await asyncio.to_thread(server.wait) == 0

    with Server(*COORDINATOR, "--json") as server:
        asyncio.run(watch(server.event()["target"], server))
