"""A held port: for whom it is held, and for whom it is not."""

from __future__ import annotations

import socket

import pytest

from stepd.targets import Target
from stepd_server.ports import HeldPort

LOOPBACK = Target("127.0.0.1", 0)


def test_a_held_port_can_be_listened_on_again_and_again() -> None:
    with HeldPort(LOOPBACK) as held:
        for _ in range(3):
            with socket.create_server(held.target) as server, socket.create_connection(held.target) as caller:
                server.accept()[0].close()
                assert caller.recv(1) == b""


def test_nobody_listens_on_a_held_port_by_itself() -> None:
    with HeldPort(LOOPBACK) as held, pytest.raises(ConnectionRefusedError):
        socket.create_connection(held.target)


def test_a_held_port_is_given_to_no_connection() -> None:
    """Not even to one that asks for it, as a connection may that does not care what it gets."""
    with HeldPort(LOOPBACK) as held, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(held.target)


def test_a_port_that_is_listened_on_cannot_be_held() -> None:
    with socket.create_server(LOOPBACK) as server, pytest.raises(OSError, match="in use"):
        HeldPort(Target(*server.getsockname()))


def test_a_port_is_let_go() -> None:
    with HeldPort(LOOPBACK) as held:
        target = held.target
    with socket.socket() as other:
        other.bind(target)


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_the_host_stays_as_it_was_given(host: str) -> None:
    with HeldPort(Target(host, 0)) as held:
        assert held.target.host == host
        assert held.target.port > 0
