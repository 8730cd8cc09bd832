"""The demo's picture: loss, norm and rate over the steps."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from stepd import chart
from stepd.demo.worker import CLIP_NORM

if TYPE_CHECKING:
    from stepd.demo.run import Outcome
    from stepd.info import StepEvent

# The trend of the loss is its mean over about so many steps; fewer steps than this are drawn without a trend.
TREND: Final = 10


def picture(events: Sequence[StepEvent], losses: Mapping[int, float], outcome: Outcome) -> str:
    """The SVG of a demo's applied steps and of the losses by step."""
    steps = [event.step for event in events]
    # An event counts the steps after it; a loss is of the parameters before it.
    loss_steps = [step + 1 for step in losses]
    raw = chart.Line(loss_steps, list(losses.values()), faint=len(losses) > TREND)
    loss_lines = (raw, chart.Line(loss_steps, trend(raw.y))) if raw.faint else (raw,)
    norms = chart.Line(steps, [event.grad_norm for event in events])
    rates = chart.Line(steps, [event.lr[0] for event in events])
    return chart.render(
        [
            chart.Panel("Loss", "cross-entropy in nats, mean over workers, logarithmic", loss_lines, log=True),
            chart.Panel(
                "Gradient norm",
                "before clipping, over all shards, logarithmic",
                (norms,),
                log=True,
                level=chart.Level(CLIP_NORM, f"clipped to {chart.label(CLIP_NORM)}: {outcome.clipped:,} steps"),
            ),
            chart.Panel("Learning rate", "warm-up and cosine", (rates,)),
        ],
        title=f"stepd demo: {outcome.accuracy:.1%} of {outcome.held_out} held-out digits recognised",
        subtitle=(
            f"{outcome.steps:,} steps in {outcome.seconds:.1f} s ({outcome.steps_per_second:.0f} steps/s), "
            f"{outcome.workers} workers, {len(outcome.shard_pids)} shards, AdamW"
        ),
    )


def trend(values: Sequence[float], window: int = TREND) -> list[float]:
    """A running geometric mean: on a logarithmic axis it lies in the middle of the values.

    Fair from the first value on: the weights always sum to one.
    """
    keep = 1 - 1 / window
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + math.log(max(value, sys.float_info.min)), keep * weight + 1
        means.append(math.exp(total / weight))
    return means
