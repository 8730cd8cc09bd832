"""HOST:PORT, taken apart and put together. Pure."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from stepd.errors import InvalidArgument

__all__ = ["Target", "is_loopback", "is_wildcard", "parse_target"]


class Target(NamedTuple):
    """Where a server listens or is reached.

    Attributes:
        host: a name or an address; an IPv6 address without brackets.
        port: 0 to 65535; 0 lets the system choose, and only makes sense for listening.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(text: str) -> Target:
    """Read `HOST:PORT` or `[IPv6]:PORT`. Raise InvalidArgument, with the text, if it is neither."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # an IPv6 address needs brackets: without them its last group reads as a port
    if not host or not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(
            f"a target is HOST:PORT, for example 127.0.0.1:7070, got {text!r}", expected="HOST:PORT", given=text
        )
    return Target(host, int(port))


def is_loopback(host: str) -> bool:
    """Whether `host` can only be reached from this machine. Names other than localhost are taken to be elsewhere."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether listening on `host` means every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
