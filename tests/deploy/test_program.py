"""What the manifests tell the programs is what the programs understand: parsed by their own parsers."""

from __future__ import annotations

import importlib.util
import socket
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from stepd.demo import worker as demo
from stepd.targets import Target, parse_target
from stepd_server.cli import DEFAULT_LISTEN, ENVIRONMENT_PREFIX, build_parser
from stepd_server.settings import CannotStart, Security, check_exposure
from stepd_server.tokens import Tokens

from .manifests import Manifests, Workload


def _parsed(w: Workload, ordinal: int, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(socket, "gethostname", lambda: f"{w.name}-{ordinal}")
    return build_parser(w.environment_of_pod(ordinal)).parse_args(w.arguments_of_pod(ordinal))


def _flags(parser: ArgumentParser, role: str | None = None) -> set[str]:
    if role is None:
        return set(parser._option_string_actions)
    (roles,) = (action for action in parser._actions if isinstance(action.choices, dict))
    assert isinstance(roles.choices, dict)
    return _flags(roles.choices[role])


def test_coordinator_understands_its_pod(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    w = manifests.coordinator
    args = _parsed(w, 0, monkeypatch)
    assert args.role == "coordinator"
    assert args.listen == Target("0.0.0.0", w.container.ports["grpc"])
    assert args.health == Target("0.0.0.0", w.container.ports["health"])
    assert args.metrics == Target("0.0.0.0", w.container.ports["metrics"])
    assert args.shards == manifests.shard.spec["replicas"]
    assert args.tokens == Path("/etc/stepd/tokens/tokens")
    assert args.data_dir == Path("/var/lib/stepd")


@pytest.mark.parametrize("index", [0, 1, 11])
def test_shard_understands_its_pod(manifests: Manifests, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    w = manifests.shard
    args = _parsed(w, index, monkeypatch)
    assert args.role == "shard"
    assert args.index == index
    assert args.listen == Target("0.0.0.0", w.container.ports["grpc"])
    assert args.health == Target("0.0.0.0", w.container.ports["health"])
    assert args.metrics == Target("0.0.0.0", w.container.ports["metrics"])
    assert args.advertise == Target(f"stepd-shard-{index}.stepd-shard", w.container.ports["grpc"])
    assert args.coordinator == Target(
        "stepd-coordinator-0.stepd-coordinator", manifests.coordinator.container.ports["grpc"]
    )
    assert args.tokens == Path("/etc/stepd/tokens/tokens")
    assert args.data_dir == Path("/var/lib/stepd")


@pytest.mark.parametrize("rank", [0, 1])
def test_worker_understands_its_pod(manifests: Manifests, rank: int) -> None:
    w = manifests.workers
    assert w.container.document["command"] == ["python", "-m", demo.__name__]
    assert importlib.util.find_spec(demo.__name__) is not None
    args = demo._parser().parse_args(w.arguments_of_pod(rank))
    assert (args.rank, args.workers) == (rank, w.spec["completions"])
    assert parse_target(args.target) == parse_target(w.environment_of_pod(rank)["STEPD_TARGET"])
    assert args.steps > 0


def test_flags_are_not_abbreviated(manifests: Manifests) -> None:
    """argparse takes a flag's beginning for the flag, until a release adds another that begins so."""
    for w in manifests.workloads():
        if w.kind == "StatefulSet":
            known = _flags(build_parser({}), w.container.arguments[0])
        else:
            known = _flags(demo._parser())
        given = {argument.partition("=")[0] for argument in w.container.arguments if argument.startswith("--")}
        assert given <= known, w.name


def test_variables_have_a_flag(manifests: Manifests) -> None:
    """The server only warns of a variable under its prefix that it does not know."""
    for w in manifests.servers():
        known = {
            ENVIRONMENT_PREFIX + flag.removeprefix("--").replace("-", "_").upper()
            for flag in _flags(build_parser({}), w.container.arguments[0])
        }
        given = {name for name in w.container.environment if name.startswith(ENVIRONMENT_PREFIX)}
        assert given <= known, w.name


def test_a_missing_flag_is_noticed(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser does not make up what the manifests leave out."""
    manifests.coordinator.container.document["env"].clear()
    with pytest.raises(SystemExit) as end:
        _parsed(manifests.coordinator, 0, monkeypatch)
    assert end.value.code == 2


def test_coordinator_has_the_default_port(manifests: Manifests) -> None:
    assert manifests.coordinator.container.ports["grpc"] == parse_target(DEFAULT_LISTEN).port


def test_insecure_is_needed_and_only_for_tls(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifests say that tokens are required all the same; when TLS comes the flag goes."""
    for w in manifests.servers():
        args = _parsed(w, 0, monkeypatch)
        assert args.insecure
        assert args.tokens
        assert args.tls_cert is None
        with pytest.raises(CannotStart):
            check_exposure(args.listen, Security(None, Tokens([])), insecure=False)


def test_token_file_as_a_secret_is_mounted(manifests: Manifests, tmp_path: Path) -> None:
    """A Secret's file is a link to one that belongs to root and fsGroup, with the mode of the manifest."""
    mode = manifests.shard.volumes["tokens"]["secret"]["defaultMode"]
    (tmp_path / "..data").mkdir()
    file = tmp_path / "..data" / "tokens"
    file.write_text("fleet f0f0\nuser a1a1\n")
    file.chmod(mode)
    (tmp_path / "tokens").symlink_to("..data/tokens")
    assert Tokens.load(tmp_path / "tokens").fleet_token == "f0f0"
