"""Who may call what."""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
from typing import Final

from stepd.errors import InvalidArgument
from stepd.limits import TOKEN_CHARS_MAX
from stepd.tls import read_secret

__all__ = ["FLEET_TOKEN_VARIABLE", "Role", "Tokens"]

# How a supervisor hands a token of its own to its processes. Not a flag: every user can read a command line.
FLEET_TOKEN_VARIABLE: Final = "STEPD_SERVER_FLEET_TOKEN"  # noqa: S105  (a name, not a token)


class Role(enum.Enum):
    """What a token is good for."""

    # Everything but what servers say among themselves.
    USER = "user"
    # Everything.
    FLEET = "fleet"


class Tokens:
    """The tokens that a server knows. Keeps digests, but for the one fleet token that it shows to other servers."""

    def __init__(self, entries: list[tuple[Role, str]]) -> None:
        self._digests = [(role, _digest(token.encode())) for role, token in entries]
        self.fleet_token = next((token for role, token in entries if role is Role.FLEET), None)

    def __repr__(self) -> str:
        return f"Tokens({len(self._digests)} tokens)"

    @classmethod
    def load(cls, path: str | os.PathLike[str], fleet_token: str | None = None) -> Tokens:
        """Read a file of lines `ROLE TOKEN`; empty lines and lines that start with # mean nothing.

        Args:
            path: the file; refused if other users of the machine can read it.
            fleet_token: a further token of role fleet, used before those of the file.
        """
        name = os.fspath(path)
        entries = [] if fleet_token is None else [(Role.FLEET, fleet_token)]
        try:
            lines = read_secret(path, "the token file").decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise InvalidArgument(f"the token file {name!r} is not ASCII text", path=name) from None
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            # Errors name the line, never what stands in it.
            if len(words) != 2 or words[0] not in {role.value for role in Role}:
                raise InvalidArgument(
                    f"the token file {name!r}, line {number}: expected 'user TOKEN' or 'fleet TOKEN'",
                    path=name,
                    line=number,
                )
            if len(words[1]) > TOKEN_CHARS_MAX:
                raise InvalidArgument(
                    f"the token file {name!r}, line {number}: a token has at most {TOKEN_CHARS_MAX} characters",
                    path=name,
                    line=number,
                )
            entries.append((Role(words[0]), words[1]))
        if not entries:
            raise InvalidArgument(f"the token file {name!r} has no token: nobody could connect", path=name)
        return cls(entries)

    def require_fleet_token(self) -> None:
        """Raise InvalidArgument unless there is a token to show to the fleet's other servers."""
        if self.fleet_token is None:
            raise InvalidArgument(
                "the token file has no line 'fleet TOKEN': the servers of a fleet need one for each other",
                expected="fleet TOKEN",
                given=None,
            )

    def role_of(self, token: bytes) -> Role | None:
        """The role of a token, or None. Takes the same time whatever the token is and wherever it stands."""
        digest, found = _digest(token), None
        for role, known in self._digests:
            if hmac.compare_digest(digest, known):
                found = role
        return found


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
