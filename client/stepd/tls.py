"""Files with secrets and certificates."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepd.errors import InvalidArgument
from stepd.limits import MIB

if TYPE_CHECKING:
    import grpc

__all__ = ["TLS", "read_file", "read_secret"]

# Certificates, keys and token files are a few KiB; anything larger is the wrong file.
_FILE_BYTES_MAX = MIB

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class TLS:
    """Certificates by their paths (PEM). `TLS()` trusts the authorities that gRPC comes with.

    Attributes:
        ca: the authority that the server's certificate must be of.
        cert: our own certificate, for servers that ask for one; together with `key`.
        key: its private key; refused if other users of the machine can read it.
    """

    ca: PathLike | None = None
    cert: PathLike | None = None
    key: PathLike | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise InvalidArgument(
                f"TLS: {given} needs {missing}: give both or neither", expected=f"{missing}=PATH", given=None
            )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """What a client needs to open a channel."""
        # Whoever only names certificates, as a supervisor does, does not wait for gRPC.
        import grpc  # noqa: PLC0415

        return grpc.ssl_channel_credentials(
            root_certificates=None if self.ca is None else read_file(self.ca, "the TLS authority"),
            private_key=None if self.key is None else read_secret(self.key, "the TLS key"),
            certificate_chain=None if self.cert is None else read_file(self.cert, "the TLS certificate"),
        )

    def server_credentials(self) -> grpc.ServerCredentials:
        """What a server needs to listen. With `ca`, clients must show a certificate of that authority."""
        import grpc  # noqa: PLC0415  (as above)

        if self.cert is None or self.key is None:
            raise InvalidArgument("TLS: a server needs cert and key", expected="cert=PATH, key=PATH", given=None)
        pair = (read_secret(self.key, "the TLS key"), read_file(self.cert, "the TLS certificate"))
        ca = None if self.ca is None else read_file(self.ca, "the TLS authority")
        return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


def read_file(path: PathLike, what: str) -> bytes:
    """Read a small regular file. Raise InvalidArgument, naming it and what it was to be, if that fails."""
    return _read(path, what, secret=False)


def read_secret(path: PathLike, what: str) -> bytes:
    """As read_file, but refuse a file that every user of the machine can read or write."""
    return _read(path, what, secret=True)


def _read(path: PathLike, what: str, *, secret: bool) -> bytes:
    name = os.fspath(path)
    try:
        # Non-blocking, so that a FIFO in its place does not hold us; the checks are of the file that is then read.
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidArgument(f"{what} {name!r} is not a regular file", path=name)
            if secret and status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise InvalidArgument(
                    f"{what} {name!r} is open to every user of this machine (mode {mode}): chmod 600 {name}",
                    path=name,
                    expected="0600",
                    given=mode,
                )
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidArgument(f"cannot read {what} {name!r}: {error.strerror}", path=name) from error
    if len(content) > _FILE_BYTES_MAX:
        raise InvalidArgument(
            f"{what} {name!r} is larger than {_FILE_BYTES_MAX} bytes", path=name, expected=f"<= {_FILE_BYTES_MAX}"
        )
    return content
