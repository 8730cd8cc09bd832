"""The demo's picture, from steps as they would be watched."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from stepd.demo.picture import TREND, picture, trend
from stepd.demo.run import Outcome, Record
from stepd.info import StepEvent


def event(step: int, *, norm: float = 2.0, outcome: str = "applied") -> StepEvent:
    return StepEvent(
        step=step,
        round=step - 1,
        outcome=outcome,
        lr=[0.001 * step],
        grad_norm=norm,
        clip_scale=min(1.0, 1 / norm),
        workers=2,
        metrics={},
        at=100.0 + step / 50,
        nonfinite=[],
    )


OUTCOME = Outcome(
    accuracy=0.981,
    held_out=358,
    steps=100,
    seconds=2.0,
    steps_per_second=50.0,
    clipped=7,
    skipped=0,
    loss=0.01,
    workers=2,
    shard_pids=[11, 12],
    picture="/tmp/demo.svg",
)


@pytest.mark.parametrize(("steps", "lines"), [(0, 0), (1, 3), (TREND, 3), (TREND + 1, 4), (5000, 4)])
def test_it_is_a_document_however_many_steps_there_were(steps: int, lines: int) -> None:
    events = [event(step) for step in range(1, steps + 1)]
    document = ET.fromstring(picture(events, {step: 1 / (step + 1) for step in range(steps)}, OUTCOME))
    assert len(list(document.iter("{http://www.w3.org/2000/svg}polyline"))) == lines
    words = " ".join(document.itertext())
    assert "98.1% of 358 held-out digits" in words
    assert "clipped to 1: 7 steps" in words


def test_the_trend_lies_in_the_middle_of_the_values() -> None:
    assert trend([3.0] * 50) == pytest.approx([3.0] * 50)
    assert trend([0.1, 10.0] * 200)[-1] == pytest.approx(1.0, rel=0.2)
    assert trend([0.0, 1.0, math.inf])[0] > 0


def test_a_record_counts_what_was_clipped_and_how_long_it_took() -> None:
    record = Record([event(1), event(2), event(2, outcome="skipped"), event(3, norm=0.5)])
    assert record.clipped == 2
    assert record.seconds == pytest.approx(0.04)
    assert record.steps_per_second == pytest.approx(75)
    assert Record().steps_per_second == 0
    assert Record([event(1)]).steps_per_second == 0


def test_an_outcome_is_good_from_95_percent_on() -> None:
    assert OUTCOME.good
    assert OUTCOME.to_json()["good"] is True
    assert OUTCOME.to_json()["needed"] == 0.95
