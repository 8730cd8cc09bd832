"""Watching a run."""

from __future__ import annotations

import asyncio
import math

import pytest

from stepd.errors import NotFound
from stepd.limits import WATCH_EVENTS_MAX
from stepd.v1.coordinator_pb2 import WatchRunResponse
from stepd.v1.round_pb2 import Decision
from stepd_server.coordinator.watch import Reports, Watchers


def event(step: int) -> WatchRunResponse:
    return WatchRunResponse(decision=Decision(step=step))


def test_every_watcher_gets_every_event_in_order() -> None:
    async def scenario() -> None:
        watchers = Watchers()
        with watchers.watching() as one, watchers.watching() as other:
            watchers.publish(event(1))
            assert (await anext(one)).decision.step == 1
            waiting = asyncio.ensure_future(anext(one))
            await asyncio.sleep(0)
            watchers.publish(event(2))
            assert (await waiting).decision.step == 2
            assert [(await anext(other)).decision.step for _ in range(2)] == [1, 2]

    asyncio.run(scenario())


def test_a_reader_that_falls_behind_loses_the_oldest() -> None:
    async def scenario() -> None:
        watchers = Watchers()
        with watchers.watching() as events:
            for step in range(WATCH_EVENTS_MAX + 10):
                watchers.publish(event(step))
            assert (await anext(events)).decision.step == 10

    asyncio.run(scenario())


def test_the_end_of_a_run_comes_after_its_last_event() -> None:
    async def scenario() -> None:
        watchers = Watchers()
        with watchers.watching() as events:
            watchers.publish(event(1))
            watchers.close(NotFound("deleted"))
            assert (await anext(events)).decision.step == 1
            with pytest.raises(NotFound):
                await anext(events)

    asyncio.run(scenario())


def test_reports_are_means_over_the_workers_that_gave_them() -> None:
    reports = Reports()
    reports.add("a", {"loss": 5.0})
    reports.add("a", {"loss": 1.0, "accuracy": 0.5})
    reports.add("b", {"loss": 2.0})
    reports.add("c", {})
    assert reports.take_means() == {"loss": 1.5, "accuracy": 0.5}
    assert reports.take_means() == {}


def test_reports_that_are_not_finite_are_passed_on() -> None:
    reports = Reports()
    reports.add("a", {"loss": math.inf})
    reports.add("b", {"loss": -math.inf})
    assert math.isnan(reports.take_means()["loss"])
