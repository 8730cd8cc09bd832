"""Waiting for a condition on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Signal:
    """Wakes whoever waits for something to change. Used on one event loop only."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something changed: everybody looks at their condition again."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `condition` holds; return whether it does, which it may not after `timeout_s`.

        The condition may raise, which ends the waiting.
        """
        if condition():
            return True
        try:
            async with asyncio.timeout(timeout_s):
                await self._change()
                while not condition():
                    await self._change()
        except TimeoutError:
            return False
        return True

    async def _change(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)
