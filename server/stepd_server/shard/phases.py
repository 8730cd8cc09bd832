"""How long the phases of a step take on a shard: a few looks at the clock for each contribution, none for a chunk.

    receive   from the beginning of the first contribution until one is whole
    wait      until all are
    reduce    until the decision is here: sums of this shard and the others, norm, clip
    apply     until the step is applied
    send      until nobody reads any more who waited for it

An attempt that starts over starts over here. A round without a step has the first three. Pure: the clock is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stepd_server.metrics.durations import Durations

PHASES: Final = ("receive", "wait", "reduce", "apply", "send")


class Phases:
    """Where the time of one run's steps goes.

    Attributes:
        taken: by phase.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Args:
        clock: seconds that only grow.
        """
        self.taken = {phase: Durations() for phase in PHASES}
        self._clock = clock
        self._attempt: tuple[int, int] | None = None
        self._began = 0.0
        self._first_whole: float | None = None
        self._last_whole = 0.0
        self._decided: float | None = None
        self._applied: float | None = None

    def began(self, attempt: tuple[int, int]) -> None:
        """A contribution to an attempt begins."""
        if attempt != self._attempt:
            self._attempt, self._began, self._first_whole = attempt, self._clock(), None

    def whole(self) -> None:
        """A contribution is whole."""
        self._last_whole = self._clock()
        if self._first_whole is None:
            self._first_whole = self._last_whole

    def decided(self) -> None:
        """The decision of the round is here."""
        self._decided, self._applied = self._clock(), None
        # Without a contribution there is nothing to tell: nobody was left, or an earlier process has gathered it.
        if self._attempt is not None and self._first_whole is not None:
            self.taken["receive"].add(self._first_whole - self._began)
            self.taken["wait"].add(self._last_whole - self._first_whole)
            self.taken["reduce"].add(self._decided - self._last_whole)
        self._attempt, self._first_whole = None, None

    def applied(self) -> None:
        """The step is applied."""
        self._applied = self._clock()
        if self._decided is not None:
            self.taken["apply"].add(self._applied - self._decided)

    def sent(self) -> None:
        """Nobody reads just now."""
        if self._applied is not None:
            self.taken["send"].add(self._clock() - self._applied)
            self._applied = None
