"""Calls from ordinary code into a background loop."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from stepd.errors import FailedPrecondition
from stepd.loop import Loop
from tests.patience import PATIENCE_S

ended: list[str] = []


async def at_end() -> None:
    ended.append("channels")


@pytest.fixture
def loop() -> Iterator[Loop]:
    ended.clear()
    loop = Loop("test loop", at_end)
    yield loop
    loop.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "test loop"]


async def value(result: int) -> int:
    await asyncio.sleep(0)
    return result


async def failure() -> None:
    raise KeyError("as raised")


def test_results_and_errors_come_back(loop: Loop) -> None:
    assert loop.run(value(3)) == 3
    with pytest.raises(KeyError, match="as raised"):
        loop.run(failure())


def test_something_is_done_meanwhile(loop: Loop) -> None:
    done = threading.Event()

    async def wait() -> bool:
        return await asyncio.to_thread(done.wait, PATIENCE_S)

    assert loop.run(wait(), meanwhile=done.set)


def test_ctrl_c_cancels_the_call_and_waits_for_its_end(loop: Loop) -> None:
    seen = []

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            seen.append("let go")

    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        loop.run(long())
    assert seen == ["let go"]


def test_a_closed_loop_says_so_and_leaves_no_coroutine_behind(loop: Loop) -> None:
    loop.close()
    loop.close()
    with pytest.raises(FailedPrecondition, match="this client is closed"):
        loop.run(value(1))
    loop.post(lambda: pytest.fail("posted to a closed loop"))
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors
    assert ended == ["channels"]


def test_closing_ends_a_call_of_another_thread(loop: Loop) -> None:
    caught: list[BaseException] = []

    def call() -> None:
        try:
            loop.run(asyncio.sleep(60))
        except FailedPrecondition as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.1)
    loop.close()
    thread.join(PATIENCE_S)
    assert [str(error) for error in caught] == ["this client was closed during the call"]


def _in_a_fork(loop: Loop, results: multiprocessing.SimpleQueue[str]) -> None:
    for attempt in (lambda: loop.run(value(1)), lambda: Loop("new", at_end)):
        try:
            attempt()
        except FailedPrecondition as error:
            results.put(str(error))
    loop.close()
    results.put("closed")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_is_told_to_connect_by_itself_and_does_not_hang(loop: Loop) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_in_a_fork, args=(loop, results))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert "does not work in its fork" in results.get()
    assert "forked from one with an open stepd client" in results.get()
    assert results.get() == "closed"
    assert loop.run(value(1)) == 1
