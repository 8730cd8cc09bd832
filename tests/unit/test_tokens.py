"""Token files and the files beside them that hold secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stepd.errors import InvalidArgument
from stepd.tls import TLS
from stepd_server.tokens import Role, Tokens


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_roles_are_read_and_everything_else_is_nobody(tmp_path: Path) -> None:
    tokens = Tokens.load(token_file(tmp_path, "# who\n\nuser  alice-1\n user bob-2 \nfleet servers-3\n"))
    assert tokens.role_of(b"alice-1") is Role.USER
    assert tokens.role_of(b"bob-2") is Role.USER
    assert tokens.role_of(b"servers-3") is Role.FLEET
    for stranger in (b"", b"alice", b"alice-1 ", b"ALICE-1", b"who", b"\xff"):
        assert tokens.role_of(stranger) is None
    assert tokens.fleet_token == "servers-3"


def test_a_supervisors_token_comes_before_those_of_the_file(tmp_path: Path) -> None:
    tokens = Tokens.load(token_file(tmp_path, "fleet old\n"), "fresh")
    assert tokens.fleet_token == "fresh"
    assert tokens.role_of(b"old") is tokens.role_of(b"fresh") is Role.FLEET


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_file_open_to_everybody_is_refused(tmp_path: Path, mode: int) -> None:
    path = token_file(tmp_path, "user alice-1\n", mode)
    with pytest.raises(InvalidArgument, match="open to every user") as caught:
        Tokens.load(path)
    assert caught.value.details["given"] == f"{mode:04o}"


def test_a_group_may_read_it_as_orchestrators_arrange(tmp_path: Path) -> None:
    assert Tokens.load(token_file(tmp_path, "user alice-1\n", 0o440)).role_of(b"alice-1") is Role.USER


@pytest.mark.parametrize("text", ["user\n", "admin s3cret\n", "user s3cret more\n", f"user {'s3cret' * 200}\n"])
def test_a_wrong_line_is_named_by_its_number_and_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="line 2") as caught:
        Tokens.load(token_file(tmp_path, "# first\n" + text))
    assert "s3cret" not in repr(caught.value) + str(caught.value.details)


@pytest.mark.parametrize("text", ["", "# nobody\n"])
def test_a_file_without_tokens_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match="nobody could connect"):
        Tokens.load(token_file(tmp_path, text))


def test_servers_of_a_fleet_need_a_token_for_each_other(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="fleet TOKEN"):
        Tokens.load(token_file(tmp_path, "user alice-1\n")).require_fleet_token()


def test_tokens_do_not_show(tmp_path: Path) -> None:
    assert "alice" not in repr(Tokens.load(token_file(tmp_path, "user alice-1\n")))


def test_what_is_not_a_small_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "large").touch(0o600)
    os.truncate(tmp_path / "large", 2 << 20)
    for name, why in [
        ("fifo", "not a regular file"),
        (".", "a directory"),
        ("none", "no such"),
        ("large", "larger"),
    ]:
        with pytest.raises(InvalidArgument, match=f"(?i){why}") as caught:
            Tokens.load(tmp_path / name)
        assert caught.value.details["path"] == os.fspath(tmp_path / name)


def test_a_private_key_open_to_everybody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cert").write_bytes(b"cert")
    key = token_file(tmp_path, "key", 0o644)
    with pytest.raises(InvalidArgument, match="TLS key"):
        TLS(cert=tmp_path / "cert", key=key).server_credentials()
    assert str(key) not in repr(TLS(cert=tmp_path / "cert", key=key))


def test_certificate_and_key_come_together() -> None:
    with pytest.raises(InvalidArgument, match="cert needs key"):
        TLS(cert="cert")
    with pytest.raises(InvalidArgument, match="key needs cert"):
        TLS(key="key")
