"""An event loop whose time is virtual, and the processes that live in it.

Nothing here waits: when nobody has anything to do, time jumps to the next timer. Callbacks run in the order in which
they were scheduled, so that the same seed gives the same history to the last callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import warnings
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from itertools import count
from typing import Any, Final

# Whose callback runs; None: the world itself, its network and its weather.
_RUNNING: Final[contextvars.ContextVar[Process | None]] = contextvars.ContextVar("running", default=None)
_copy_context: Final = contextvars.copy_context
# Given in place of a context: what is called belongs to the world itself.
NOBODY: Final[Any] = object()


def running() -> Process | None:
    """The process whose code runs now."""
    return _RUNNING.get()


class Killed(BaseException):
    """The process has died in the middle of a function. What lies above on its stack must not go on."""


class Deadlock(Exception):
    """Nothing is left that could ever happen, and somebody waits."""


def _numbered(future: Any) -> int:
    """A hash that does not depend on its address: sets of futures are walked through in the order of it."""
    number: int | None = future.number
    if number is None:
        future.number = number = next(future.get_loop().numbers)
    return number


class Future(asyncio.Future[Any]):
    """Attributes:
    number: among all futures and tasks of the loop whose hash was asked for.
    """

    number: int | None = None
    __hash__ = _numbered


class Task(asyncio.Task[Any]):
    """As Future. Everything that a dead process held stays as it was, so its tasks are kept to the end."""

    number: int | None = None
    __hash__ = _numbered


class Handle(list[Any]):
    """As asyncio's: a callback, its arguments and its context. A list, for that is quick to make."""

    __slots__ = ()

    def cancel(self) -> None:
        self[0], self[1] = None, ()

    def cancelled(self) -> bool:
        return self[0] is None


class Process:
    """What dies and is stopped as one: all code that was started from its own.

    Attributes:
        name: for the transcript.
        dead: nothing of it runs any more; also no `finally`.
        halted: nothing of it runs now, for it is dead or stopped.
        on_death: called when it dies.
    """

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.dead = False
        self.halted = False
        self.on_death: list[Callable[[], object]] = []
        self._loop = loop
        self._stopped: list[Handle] | None = None
        self._context = contextvars.Context()
        self._context.run(_RUNNING.set, self)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as this process."""
        task: asyncio.Task[Any] = self._loop.create_task(work, context=self._context.copy())
        return task

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function as this process."""
        return self._context.copy().run(function, *arguments)

    def kill(self) -> None:
        if not self.dead:
            self.dead = self.halted = True
            for action in self.on_death:
                action()

    def stop(self) -> None:
        """Let nothing of it run until it goes on: SIGSTOP."""
        if self._stopped is None:
            self._stopped = []
            self.halted = True

    def go_on(self) -> None:
        held, self._stopped = self._stopped, None
        self.halted = self.dead
        self._loop.run_later(held or ())

    @property
    def stopped(self) -> bool:
        return self._stopped is not None

    def hold(self, handle: Handle) -> None:
        """Take a callback of it that is not to run now."""
        if self.dead:
            self._loop.kept.append(handle)
        elif self._stopped is not None:
            self._stopped.append(handle)


class VirtualLoop(asyncio.BaseEventLoop):
    """Attributes:
    kept: all tasks, and what the dead have left.
    numbers: for hashes of futures.
    problems: what was raised where nobody looks.
    """

    _ready: Any
    _stopping: bool
    # Asked for every future: no.
    get_debug: Any = bool

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []
        self.numbers = count()
        self.problems: list[str] = []
        self._now = 0.0
        # By time, and then by when they were set.
        self._timers: list[tuple[float, int, Handle]] = []
        self._set = count()
        self.set_exception_handler(self._note)
        self.create_future: Any = partial(Future, loop=self)

    # --- Time -----------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while not self._stopping:
            if ready:
                handle = ready.popleft()
            elif timers:
                at, _, handle = heapq.heappop(timers)
                if handle[0] is not None and at > self._now:
                    self._now = at
            else:
                raise Deadlock("nothing is left to happen")
            callback, arguments, context = handle
            if callback is None:
                continue
            try:
                if context is NOBODY:
                    callback(*arguments)
                    continue
                process = context.get(_RUNNING)
                if process is not None and process.halted:
                    process.hold(handle)
                    continue
                context.run(callback, *arguments)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 (noted)
                self._note(self, {"message": f"in {callback}", "exception": error})

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle((callback, args, _copy_context() if context is None else context))
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle((callback, args, _copy_context() if context is None else context))
        heapq.heappush(self._timers, (when, next(self._set), handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        handle = Handle((callback, args, _copy_context() if context is None else context))
        heapq.heappush(self._timers, (self._now + delay, next(self._set), handle))
        return handle

    def run_later(self, handles: Any) -> None:
        self._ready.extend(handles)

    # --- What asyncio asks of a loop ------------------------------------------------------------------------------

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        task = Task(coro, loop=self, name=name, context=context)
        self.kept.append(task)
        return task

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """At once: threads are not part of the world."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 (passed on)
            future.set_exception(error)
        return future

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        """Nobody asks for all of them, for nothing shuts this loop down."""

    def _process_events(self, event_list: Any) -> None: ...

    def _write_to_self(self) -> None: ...

    # --- The end --------------------------------------------------------------------------------------------------

    def _note(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, Killed):
            self.problems.append(f"{context.get('message')}: {error!r}")

    def end(self) -> None:
        """Let go of everything, in silence: what was under way has no business any more."""
        self.set_exception_handler(lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for task in [each for each in self.kept if isinstance(each, Task)]:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                if not task.done():
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
                elif not task.cancelled():
                    task.exception()
            self.kept.clear()
            self._ready.clear()
            self._timers.clear()
            self.close()


class Clock:
    """Stands in for the module `time` where code reads the clock by itself."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time
        self.perf_counter = loop.time
        self.time = loop.time
        self.sleep = _no_sleep


def _no_sleep(_: float) -> None:
    raise AssertionError("nobody sleeps in an event loop")


@contextlib.contextmanager
def virtual_loop() -> Generator[VirtualLoop, None, None]:
    loop = VirtualLoop()
    try:
        yield loop
    finally:
        loop.end()
