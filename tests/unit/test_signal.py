"""Waiting for a condition: woken by a change, ended by time or by an error, and nothing left behind."""

import asyncio

import pytest

from stepd_server.shard.signal import Signal


def test_waiters_go_on_when_their_condition_holds() -> None:
    """A change that does not concern a waiter leaves it waiting."""

    async def scenario() -> list[int]:
        signal, value, woken = Signal(), 0, list[int]()

        async def wait_for(wanted: int) -> None:
            assert await signal.until(lambda: value >= wanted)
            woken.append(wanted)

        tasks = [asyncio.create_task(wait_for(wanted)) for wanted in (3, 1, 2)]
        for value in range(4):  # noqa: B007
            signal.notify()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return woken

    assert asyncio.run(scenario()) == [1, 2, 3]


def test_time_ends_a_wait() -> None:
    """The answer is that the condition does not hold."""

    async def scenario() -> bool:
        return await Signal().until(lambda: False, 0.01)

    assert asyncio.run(scenario()) is False


def test_an_error_in_the_condition_reaches_the_waiter() -> None:
    """A run that is deleted ends every wait on it."""

    async def scenario() -> None:
        signal, broken = Signal(), False

        def condition() -> bool:
            if broken:
                raise LookupError
            return False

        task = asyncio.create_task(signal.until(condition))
        await asyncio.sleep(0)
        broken = True
        signal.notify()
        with pytest.raises(LookupError):
            await task

    asyncio.run(scenario())
