"""Where a server listens: one address, and a port that stays its own while its process is away."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self

from stepd.targets import Target
from stepd_server.settings import CannotStart

__all__ = ["HeldPort", "bound", "resolve"]


class HeldPort:
    """A port that is bound and never listened on; a context manager that lets it go.

    Who sets SO_REUSEADDR, as every server of ours does, may listen on it all the same. The system gives it to
    nobody: without this, any connection on the machine can be handed the port of a process that is being started
    again, which then cannot listen.

    Attributes:
        target: the address, with the port that was chosen.
    """

    def __init__(self, listen: Target) -> None:
        """
        Args:
            listen: port 0 lets the system choose.

        Raises:
            OSError: somebody listens there.
            CannotStart: there is no such host.
        """
        self._socket = bound(resolve(listen))
        self.target = listen._replace(port=self._socket.getsockname()[1])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def bound(address: Target) -> socket.socket:
    """A socket that is bound as those of servers are, and does not listen. OSError if somebody listens there."""
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        stack.pop_all()
    return made


def resolve(listen: Target) -> Target:
    """One address for a name, or CannotStart.

    Of several, gRPC would be content with any that is free; a fleet has one.
    """
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotStart(f"cannot listen on {listen}: {error.strerror}") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    return Target(str(found[0][4][0]), listen.port)
