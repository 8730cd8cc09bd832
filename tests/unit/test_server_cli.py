"""Flags and environment of the servers."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from stepd.targets import Target
from stepd_server import cli, folders, logs
from stepd_server.process import announce
from stepd_server.settings import (
    CannotStart,
    CoordinatorSettings,
    FleetSettings,
    Security,
    ShardSettings,
    check_exposure,
    cores,
)
from stepd_server.tokens import Role, Tokens


def settings(*argv: str, environ: dict[str, str] | None = None) -> CoordinatorSettings | ShardSettings | FleetSettings:
    return cli.read_settings(cli.build_parser(environ or {}).parse_args(argv))


def test_a_fleet_needs_no_flags() -> None:
    fleet = settings("serve")
    assert isinstance(fleet, FleetSettings)
    assert (str(fleet.listen), fleet.shards, fleet.data_dir, fleet.security) == ("127.0.0.1:7070", 1, None, Security())


def test_as_many_shards_as_there_are_cores_or_as_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "cores", lambda: 6)

    def shards(*argv: str, **environ: str) -> int:
        fleet = settings("serve", *argv, environ=environ)
        assert isinstance(fleet, FleetSettings)
        return fleet.shards

    assert shards("--shards=auto") == 6
    assert shards(STEPD_SERVER_SHARDS="auto") == 6
    assert shards("--shards=auto", f"--data-dir={tmp_path}") == 6
    # What is in them would be lost to a fleet of another size, which the machine may suggest after a move.
    for name in ("shard-0", "shard-2", "shard-x", "coordinator"):
        (tmp_path / name).mkdir()
    assert shards("--shards=auto", f"--data-dir={tmp_path}") == 3
    assert shards("--shards=2", f"--data-dir={tmp_path}") == 2
    with pytest.raises(SystemExit):
        settings("coordinator", "--listen=127.0.0.1:7070", "--shards=auto")


def test_cores_are_those_that_may_be_used() -> None:
    assert cores() == len(os.sched_getaffinity(0))


def test_threads() -> None:
    for settings_of in (
        settings("serve", "--threads=3"),
        settings(
            "shard",
            "--listen=127.0.0.1:0",
            "--index=0",
            "--coordinator=127.0.0.1:1",
            environ={"STEPD_SERVER_THREADS": "3"},
        ),
    ):
        assert not isinstance(settings_of, CoordinatorSettings)
        assert settings_of.threads == 3
    for wrong in ("0", "17", "-1", "two"):
        with pytest.raises(SystemExit):
            settings("serve", f"--threads={wrong}")


def test_roles_by_flags() -> None:
    assert settings("coordinator", "--listen=127.0.0.1:7070", "--shards=3", "--json") == CoordinatorSettings(
        listen=Target("127.0.0.1", 7070), shards=3, json=True
    )
    argv = ["--index=2", "--listen=[::1]:7071", "--advertise=shard-2.shards:7071", "--data-dir=/data", "--insecure"]
    assert settings("shard", "--coordinator=c:7070", *argv) == ShardSettings(
        coordinator=Target("c", 7070),
        index=2,
        listen=Target("::1", 7071),
        advertise=Target("shard-2.shards", 7071),
        data_dir=Path("/data"),
    )


def test_every_flag_of_every_role_may_come_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "STEPD_SERVER_COORDINATOR": "c:7070",
        "STEPD_SERVER_INDEX": "1",
        "STEPD_SERVER_LISTEN": "0.0.0.0:7071",
        "STEPD_SERVER_ADVERTISE": "",  # as good as unset
        "STEPD_SERVER_DATA_DIR": str(tmp_path),
        "STEPD_SERVER_HEALTH": "0.0.0.0:8080",
        "STEPD_SERVER_INSECURE": "true",
        "STEPD_SERVER_LIFELINE": "0",
        "STEPD_SERVER_SHARDS": "7",  # another role's
    }
    expected = ShardSettings(
        coordinator=Target("c", 7070),
        index=1,
        listen=Target("0.0.0.0", 7071),
        data_dir=tmp_path,
        health=Target("0.0.0.0", 8080),
    )
    assert settings("shard", environ=environ) == expected
    flag = settings("shard", "--index=5", environ=environ)  # a flag wins
    assert isinstance(flag, ShardSettings)
    assert flag.index == 5


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["serve", "--shards=0"], "--shards"),
        (["serve", "--shards=two"], "--shards"),
        (["serve", "--listen=7070"], "--listen"),
        (["coordinator", "--listen=127.0.0.1:0"], "--shards"),
        (["shard", "--coordinator=c:1", "--listen=127.0.0.1:0", "--index=-1"], "--index"),
        (["shard", "--coordinator=c:1", "--listen=127.0.0.1:0"], "--index"),
        (["serve", "--shard=2"], "--shard"),  # no abbreviations: a new flag would change their meaning
        ([], "serve"),
    ],
)
def test_wrong_usage_is_named_and_ends_with_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        settings(*argv)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_wrong_variables_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("serve", environ={"STEPD_SERVER_INSECURE": "maybe"})
    assert "STEPD_SERVER_INSECURE" in capsys.readouterr().err


def test_misspelt_variables_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    cli.warn_of_unknown_variables({"STEPD_SERVER_TOKNES": "f", "STEPD_SERVER_INDEX": "1", "STEPD_TARGET": "t"})
    (record,) = caplog.records
    assert "STEPD_SERVER_TOKNES" in record.getMessage()


@pytest.mark.parametrize(("host", "index"), [("stepd-shard-0", 0), ("stepd-shard-12.shards.ns.svc", 12)])
def test_the_index_may_be_that_of_the_host_name(monkeypatch: pytest.MonkeyPatch, host: str, index: int) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    shard = settings("shard", "--coordinator=c:1", "--listen=127.0.0.1:0", "--index=hostname")
    assert isinstance(shard, ShardSettings)
    assert shard.index == index


@pytest.mark.parametrize("host", ["laptop", "node7", "shard-x", "shard-1-a"])
def test_a_host_name_without_a_number_is_no_index(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    with pytest.raises(SystemExit):
        settings("shard", "--coordinator=c:1", "--listen=127.0.0.1:0", "--index=hostname")
    assert host in capsys.readouterr().err


# --- Beyond this machine ----------------------------------------------------------------------------------------

OUTSIDE = Target("0.0.0.0", 7070)
TOKENS = Tokens([(Role.FLEET, "t")])


def test_listening_beyond_this_machine_needs_tls_and_tokens_or_an_explicit_word() -> None:
    with pytest.raises(CannotStart, match="--tls-cert and --tls-key and --tokens") as caught:
        check_exposure(OUTSIDE, Security(), insecure=False)
    assert caught.value.exit_code == 2
    with pytest.raises(CannotStart, match="without --tls-cert and --tls-key "):
        check_exposure(OUTSIDE, Security(tokens=TOKENS), insecure=False)
    check_exposure(OUTSIDE, Security(), insecure=True)
    check_exposure(Target("127.0.0.1", 7070), Security(), insecure=False)


# --- Folders, events, logs --------------------------------------------------------------------------------------


def test_a_folder_is_one_processs_at_a_time_and_free_again_after(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with folders.lock_folder(path), pytest.raises(CannotStart, match="in use"), folders.lock_folder(path):
        pass
    with folders.lock_folder(path):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="file/folder"), folders.lock_folder(tmp_path / "file" / "folder"):
        pass


def test_temporary_folders_of_killed_processes_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_parent", lambda: tmp_path)
    for name in ("stepd-fleet-killed", "stepd-fleet-alive", "stepd-fleet-young", "other-fleet", "stepd-of-somebody"):
        (tmp_path / name).mkdir()
    for name in ("stepd-fleet-killed", "stepd-fleet-alive", "stepd-fleet-young", "other-fleet"):
        (tmp_path / name / "lock").touch()
    for folder in tmp_path.iterdir():
        if not folder.name.endswith("young"):
            os.utime(folder, (1e9, 1e9))
    with folders.lock_folder(tmp_path / "stepd-fleet-alive"), folders.temporary_folder("fleet") as mine:
        there = {folder.name for folder in tmp_path.iterdir()}
    assert there == {mine.name, "stepd-fleet-alive", "stepd-fleet-young", "other-fleet", "stepd-of-somebody"}
    assert not mine.exists()


def test_an_event_is_a_line_for_people_or_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    announce("stepd shard: listening", as_json=False, event="listening")
    announce("stepd shard: listening", as_json=True, event="listening", role="shard")
    assert capsys.readouterr().out.splitlines() == [
        "stepd shard: listening",
        f'{{"pid": {os.getpid()}, "event": "listening", "role": "shard"}}',
    ]


def test_a_log_entry_is_one_line_whatever_is_in_it() -> None:
    with pytest.raises(KeyError) as caught:
        os.environ["A\x1b[31M"]
    about = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("stepd", logging.ERROR, "f", 1, "run %s", ("x\ny\u2028z",), about)
    text = logs.OneLine("shard 1").format(record)
    assert text.isprintable()
    assert "ERROR shard 1: run x | y" in text
    assert "KeyError" in text
