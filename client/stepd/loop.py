"""A background thread with an event loop, and calls into it from ordinary code.

gRPC's asyncio side moves as much as its threaded one and holds all streams of a step on one thread. The library is
synchronous all the same: a call is submitted, waited for, and cancelled when the waiting is interrupted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from stepd.errors import FailedPrecondition

T = TypeVar("T")

# How long an interrupted caller waits for its call to let go of the caller's arrays.
CANCEL_S: Final = 2.0
# How long closing waits for the thread; it holds nothing that the system does not take back.
CLOSE_S: Final = 5.0

# Clients alive in this process when it was forked: their threads are not in the child, and gRPC's own neither.
_alive: set[int] = set()
_forked_with_clients = False


def _after_fork() -> None:
    global _forked_with_clients  # noqa: PLW0603 (a fact about the process)
    _forked_with_clients = _forked_with_clients or bool(_alive)
    _alive.clear()


os.register_at_fork(after_in_child=_after_fork)


class Loop:
    """An event loop in a daemon thread. `run` may be called from any other thread."""

    def __init__(self, name: str, at_end: Callable[[], Awaitable[None]]) -> None:
        """
        Args:
            name: of the thread.
            at_end: awaited in the loop when it is closed, after all calls have ended.
        """
        if _forked_with_clients:
            raise FailedPrecondition(
                "this process was forked from one with an open stepd client, whose connections do not survive a fork: "
                "start processes with the method 'spawn' or 'forkserver', or connect only after the fork",
                pid=os.getpid(),
            )
        self._pid = os.getpid()
        # Reentrant: a finalizer that posts may run in a thread that is just posting.
        self._lock = threading.RLock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        self._thread = threading.Thread(target=_turn, args=(self._loop, at_end), name=name, daemon=True)
        _alive.add(id(self._loop))
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def check(self) -> None:
        """Raise unless calls can be made."""
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                f"this client belongs to process {self._pid} and does not work in its fork {os.getpid()}: "
                "start processes with the method 'spawn' or 'forkserver', and connect in each",
                expected=self._pid,
                given=os.getpid(),
            )
        if self._closed:
            raise FailedPrecondition("this client is closed")

    def run(self, coroutine: Coroutine[Any, Any, T], meanwhile: Callable[[], object] | None = None) -> T:
        """Run a coroutine in the loop, give its result, raise what it raises; cancel it if the waiting is interrupted.

        Args:
            coroutine: to run.
            meanwhile: called here while it runs.
        """
        call = _Call(coroutine, self._loop)
        try:
            with self._lock:
                self.check()
                self._loop.call_soon_threadsafe(call.start)
        except BaseException:
            coroutine.close()  # never started: no "never awaited"
            raise
        try:
            if meanwhile is not None:
                meanwhile()
            return cast("T", call.result.result())
        except concurrent.futures.CancelledError:
            raise FailedPrecondition("this client was closed during the call") from None
        finally:
            if not call.result.done():
                with contextlib.suppress(RuntimeError):  # closed meanwhile: cancelled as well
                    self._loop.call_soon_threadsafe(call.cancel)
                concurrent.futures.wait([call.result], CANCEL_S)

    def post(self, action: Callable[[], object]) -> None:
        """Have the loop call `action` soon; nothing if it is closed or belongs to another process."""
        with self._lock:
            if not self._closed and os.getpid() == self._pid:
                self._loop.call_soon_threadsafe(action)

    def close(self) -> None:
        """End every call and the thread. May be repeated; in a fork it only forgets."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if os.getpid() != self._pid:
                return
            _alive.discard(id(self._loop))
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:  # a finalizer may run anywhere
            self._thread.join(CLOSE_S)


class _Call:
    """One coroutine on its way through the loop."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        self.result: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._coroutine = coroutine
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._settle)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _settle(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            # Not `cancel`, which does not wake those who wait for it to be done.
            self.result.set_exception(concurrent.futures.CancelledError())
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())
        # An error holds its frames, and frames hold arrays.
        self._task = None


def _turn(loop: asyncio.AbstractEventLoop, at_end: Callable[[], Awaitable[None]]) -> None:
    """The thread: turn the loop until it is stopped, then end what is left in it."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_S))
        with contextlib.suppress(TimeoutError):
            loop.run_until_complete(asyncio.wait_for(at_end(), CANCEL_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As asyncio's own, but for what gRPC causes when a process has several loops.

    They share one completion queue; each is woken for every event, and all but one find nothing left to read.
    """
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
