"""`serve`: a fleet of processes that is started, kept alive and taken away as one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from stepd.channel import TLS, open_channel
from stepd.errors import PermissionDenied, StepdError, Unauthenticated, Unavailable
from stepd.status import from_rpc_error
from stepd.targets import parse_target
from stepd.v1 import coordinator_pb2, coordinator_pb2_grpc
from tests.integration.servers import Server, eventually, is_running
from tests.patience import PATIENCE_S


def fleet(*flags: str, shards: int = 2) -> Server:
    return Server("serve", "--listen=127.0.0.1:0", f"--shards={shards}", "--json", *flags)


def pids(state: dict[str, Any]) -> list[int]:
    return [state["pid"], state["coordinator"]["pid"], *(shard["pid"] for shard in state["shards"])]


def written(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / "fleet.json").read_text())
    return state


def none_left(processes: list[int]) -> None:
    eventually(lambda: not any(map(is_running, processes)), "every process of the fleet has ended")


def test_a_fleet_says_who_it_is_and_keeps_it_in_a_file(tmp_path: Path) -> None:
    with fleet(f"--data-dir={tmp_path}") as server:
        roles = [server.event(event="listening") for _ in range(3)]
        ready = server.event(event="listening", role="fleet")
        assert sorted(event["role"] for event in roles) == ["coordinator", "shard", "shard"]
        assert ready["pid"] == server.pid
        assert ready["data_dir"] == str(tmp_path)
        assert [shard["index"] for shard in ready["shards"]] == [0, 1]
        assert ready["target"] == ready["coordinator"]["target"]
        assert ready.items() >= written(tmp_path).items()
        assert all(map(is_running, pids(ready)))
        # Ctrl-C in a terminal reaches the supervisor's group only.
        assert len({os.getpgid(pid) for pid in pids(ready)}) == 4


def test_a_fleet_says_it_to_people_too() -> None:
    with Server("serve", "--listen=127.0.0.1:0") as server:
        lines = [server.line() for _ in range(3)]
        assert lines[0].startswith("stepd serve: coordinator is ready on 127.0.0.1:")
        assert lines[1].startswith("stepd serve: shard 0 is ready on 127.0.0.1:")
        assert lines[2].startswith("stepd: fleet of 1 shard listening on 127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fleet_ends_whole_and_takes_its_folder_with_it(number: signal.Signals) -> None:
    with fleet() as server:
        ready = server.event(role="fleet")
        folder = Path(ready["data_dir"])
        assert folder.is_dir()
        server.signal(number)
        assert server.ended() == (0, [])
    none_left(pids(ready))
    assert not folder.exists()


def test_a_fleet_that_was_given_a_folder_leaves_it(tmp_path: Path) -> None:
    with fleet(f"--data-dir={tmp_path / 'new'}") as server:
        server.event(role="fleet")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["coordinator", "lock", "shard-0", "shard-1"]


def test_a_fleet_can_be_ended_while_it_starts() -> None:
    with fleet() as server:
        coordinator = server.event(role="coordinator")["pid"]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    none_left([server.pid, coordinator])


def test_a_fleet_ends_with_its_lifeline() -> None:
    with fleet("--lifeline") as server:
        ready = server.event(role="fleet")
        server.close_stdin()
        assert server.wait() == 0
    none_left(pids(ready))


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with fleet(f"--data-dir={tmp_path}") as server:
        ready = server.event(role="fleet")
        server.signal(signal.SIGKILL)
        server.wait()
    # And the next one need not wait for that by hand.
    with fleet(f"--data-dir={tmp_path}") as server:
        again = server.event(role="fleet")
        none_left(pids(ready))
        assert all(map(is_running, pids(again)))


def test_what_dies_is_started_again_at_its_address(tmp_path: Path) -> None:
    with fleet(f"--data-dir={tmp_path}") as server:
        before = server.event(role="fleet")
        for victim in (before["shards"][1], before["coordinator"]):
            os.kill(victim["pid"], signal.SIGKILL)
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(parse_target(victim["target"]))  # its own even while nobody listens
        eventually(
            lambda: {before["shards"][1]["pid"], before["coordinator"]["pid"]}.isdisjoint(pids(written(tmp_path))),
            "both are in the file with new processes",
        )
        after = written(tmp_path)
        assert after["shards"][0] == before["shards"][0]
        assert after["shards"][1]["target"] == before["shards"][1]["target"]
        assert after["target"] == before["target"]
        eventually(lambda: answers(after["coordinator"]["target"]), "the coordinator answers again")
        server.signal(signal.SIGTERM)
        code, errors = server.ended()
    assert code == 0
    for name, victim in {"shard 1": before["shards"][1], "coordinator": before["coordinator"]}.items():
        ended = f"{name} (pid {victim['pid']}) was ended by SIGKILL; starting it again"
        assert sum(ended in line for line in errors) == 1
    none_left(pids(after))


def answers(target: str) -> bool:
    with socket.socket() as probe:
        host, _, port = target.rpartition(":")
        return probe.connect_ex((host, int(port))) == 0


def test_a_process_that_does_not_end_is_killed() -> None:
    with fleet() as server:
        ready = server.event(role="fleet")
        os.kill(ready["shards"][0]["pid"], signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        code, errors = server.ended()
    assert code == 0
    assert any("shard 0" in line and "killing it" in line for line in errors)
    none_left(pids(ready))


def test_a_second_fleet_on_a_taken_port_gets_one_line_and_leaves_nothing() -> None:
    with fleet(shards=1) as first:
        target = first.event(role="fleet")["target"]
        with Server("serve", f"--listen={target}") as second:
            assert second.ended() == (1, [f"stepd coordinator: cannot listen on {target}: address already in use"])
            assert second.out.empty()


def test_a_second_fleet_in_the_same_folder_gets_one_line(tmp_path: Path) -> None:
    with fleet(f"--data-dir={tmp_path}", shards=1) as first:
        first.event(role="fleet")
        with fleet(f"--data-dir={tmp_path}", shards=1) as second:
            assert second.ended() == (1, [f"stepd serve: the folder {tmp_path} is in use by another process"])


def test_a_fleet_with_tls_and_tokens_trusts_itself_and_no_stranger(tmp_path: Path) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    for name, content in {
        "ca.pem": ca.cert_pem.bytes(),
        "cert.pem": issued.cert_chain_pems[0].bytes(),
        "key.pem": issued.private_key_pem.bytes(),
        "tokens": b"user alice-1\n",
    }.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    flags = [
        f"--tls-cert={tmp_path / 'cert.pem'}",
        f"--tls-key={tmp_path / 'key.pem'}",
        f"--tokens={tmp_path / 'tokens'}",
    ]
    tls = TLS(ca=tmp_path / "ca.pem")

    async def error(target: str, token: str | None, client: TLS | None) -> type[StepdError]:
        async with open_channel(target, token=token, tls=client) as channel:
            stub: Any = coordinator_pb2_grpc.CoordinatorStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                await stub.RegisterShard(coordinator_pb2.RegisterShardRequest(), timeout=PATIENCE_S)
            return type(from_rpc_error(caught.value))

    with fleet(*flags) as server:
        ready = server.event(role="fleet")
        for target in (ready["target"], ready["shards"][1]["target"]):
            assert asyncio.run(error(target, None, tls)) is Unauthenticated
            assert asyncio.run(error(target, "alice-1", tls)) is PermissionDenied
            assert asyncio.run(error(target, "alice-1", None)) is Unavailable
        # The fleet's own token is on no command line: every user of the machine can read those.
        for pid in pids(ready):
            assert b"token" not in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"tokens", b"")
