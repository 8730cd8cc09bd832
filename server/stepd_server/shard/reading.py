"""Pulls: who reads, in which pieces, and what is said to those who cannot read on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stepd.errors import Aborted
from stepd.limits import READER_GRACE_S, READER_GRACE_S_MAX
from stepd.v1 import round_pb2
from stepd_server.shard.gathering import Key, members_text

# So many are past READER_GRACE_S_MAX.
_DOUBLINGS: Final = 8


class Reader:
    """A pull under way.

    Attributes:
        member: whose it is; None if it is no worker's.
        state: it reads the state of the optimizer.
        grace: seconds that a step waits for it.
        cut: the version it reads is about to be overwritten, and it must not read on.
    """

    def __init__(self, member: Key | None = None, *, state: bool, sent_away: int = 0) -> None:
        self.member = member
        self.state = state
        self.grace = min(READER_GRACE_S * 2 ** min(sent_away, _DOUBLINGS), READER_GRACE_S_MAX)
        self.cut = False


def cut_into(ranges: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) in pieces of at most `size` elements."""
    return [(a, min(a + size, stop)) for start, stop in ranges for a in range(start, stop, size)]


def version_passed(run: str, asked: int, present: int) -> Aborted:
    """The error for a version that is gone."""
    return Aborted(
        f"run {run!r}: step {asked} has been overwritten by step {present}", reason="VERSION_PASSED", step=present
    )


def pending(run: str, round_number: int, awaited: Sequence[round_pb2.Member] | None) -> Aborted:
    """The error for a wait that has taken so long that the caller is to show that it is still there."""
    names = "enough workers" if awaited is None else members_text(awaited)
    return Aborted(
        f"run {run!r}: round {round_number} is not decided yet, waiting for {names}",
        reason="ROUND_PENDING",
        run=run,
        awaited=names,
    )
