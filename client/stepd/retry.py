"""When to try again, and how long.

Every request of stepd names itself, so any may be sent again. Tried again is what may pass by itself: no answer, a
server that is starting, an attempt that is over. Everything else is the caller's to know at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc

from stepd.errors import Aborted, DeadlineExceeded, StepdError, Unavailable
from stepd.status import from_rpc_error

T = TypeVar("T")

# The first pause is what a lost connection needs; the longest does not leave a server that has returned waiting.
PAUSE_S_MIN: Final = 0.05
PAUSE_S_MAX: Final = 2.0
# Of the time for which there was no answer.
PAUSE_SHARE: Final = 0.5


class Patience:
    """How long one call has been failing, and what is left of the time it may.

    Time counts from the first failure after the last sign of life, so that waiting for slow peers costs nothing; a try
    that got no answer within its deadline failed from its start.
    """

    def __init__(self, what: str, target: str, retry_for: float, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            what: the call, for messages: "push to shard 1".
            target: whom it is sent to.
            retry_for: seconds.
            clock: gives seconds.
        """
        self._what = what
        self._target = target
        self._retry_for = retry_for
        self._clock = clock
        self._since: float | None = None
        self._try_began = clock()
        self._tries = 0

    def begin(self) -> None:
        """A try begins."""
        self._try_began = self._clock()

    def alive(self) -> None:
        """The other side answered, if only that it is not ready."""
        self._since = None
        self._tries = 0

    def pause(self, error: StepdError) -> float:
        """Seconds to wait after a try that failed with `error`; raise if there is no time left or it will not pass."""
        if not passes(error):
            raise error
        now = self._clock()
        if self._since is None:
            self._since = self._try_began if isinstance(error, DeadlineExceeded) else now
        self._tries += 1
        waited = now - self._since
        if waited >= self._retry_for:
            raise self._given_up(error, waited) from error
        # A part of how long it has been: an outage is not made much longer, and a long one is not asked about often.
        longest = min(max(PAUSE_S_MIN, waited * PAUSE_SHARE), PAUSE_S_MAX)
        # Jitter: workers that lost one server together must not come back together.
        return min(random.uniform(longest / 2, longest), max(self._retry_for - waited, 0.0))  # noqa: S311 (no secret)

    def _given_up(self, error: StepdError, waited: float) -> StepdError:
        kind = DeadlineExceeded if isinstance(error, DeadlineExceeded) else Unavailable
        own = error.reason if isinstance(error, Unavailable) else None
        details = {"target": self._target, "call": self._what, "tries": self._tries, "waited_s": round(waited, 1)}
        return kind(
            f"{self._what} ({self._target}) failed {self._tries} times in {waited:.1f} s "
            f"(retry_for={self._retry_for:g}), at last with: {error}",
            reason=own,
            **{**error.details, **details},
        )


def passes(error: StepdError) -> bool:
    """Whether the same request may succeed later."""
    # RunRewound shares ABORTED's code but not its meaning; it is not an Aborted.
    return isinstance(error, Unavailable | Aborted | DeadlineExceeded)


async def persist(attempt: Callable[[], Awaitable[T]], patience: Patience, target: str) -> T:
    """Call until it succeeds or patience ends. Errors of gRPC are turned into those of stepd."""
    while True:
        patience.begin()
        try:
            return await attempt()
        except grpc.RpcError as error:
            pause = patience.pause(from_rpc_error(error, target=target))
        await asyncio.sleep(pause)
