"""What a schedule is.

A schedule says by which rate the next step is taken. It is a pure function of the committed step and of the group's
base rate, and a straight line in the latter: rate = slope * base + offset. A schedule says what slope and offset are
at a step. That is all there is to know: a rate that a user sets in the middle of a run becomes the present one by
solving the line for its base, and the schedule goes on from there, as torch's chainable schedulers do.

A schedule may cycle the momentum, too: `momentum` says what it is at a step, and `Rule.cycled` puts it into the rule.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from stepd.errors import FailedPrecondition
from stepd.settings import Settings, refuse


class Line(NamedTuple):
    """How the rate at one step depends on the base rate: slope * base + offset."""

    slope: float
    offset: float


@dataclass(frozen=True)
class Schedule(Settings, ABC):
    """Base of all schedules. A subclass registers itself under its class name."""

    registry: ClassVar[dict[str, type[Schedule]]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        Schedule.registry[cls.__name__] = cls

    @abstractmethod
    def line(self, step: int) -> Line:
        """The line at a step; 0 is the first."""

    def rate(self, step: int, base: float) -> float:
        """The rate of the step that is taken when `step` steps have been applied, for a group whose own is `base`."""
        slope, offset = self.line(step)
        return slope * base + offset

    def momentum(self, step: int) -> float | None:
        """The momentum, or beta1, of the step that is taken when `step` steps have been applied. None: the rule's own.

        A schedule that says one at any step says one at every step.
        """
        return None

    def follow(self, step: int, before: Line) -> Line:
        """The line at a step of a rate that was another's, too, as torch's chainable schedulers go on from any rate.

        Args:
            step: 0 is the first.
            before: of the rate in the step before; at step 0 Line(1, 0), the group's own rate.
        """
        now, own = self.line(step), self.line(step - 1) if step else Line(1.0, 0.0)
        share = now.slope / own.slope if own.slope else math.inf
        if math.isfinite(share):  # not where the schedule was at 0, or next to it
            return Line(share * before.slope, share * (before.offset - own.offset) + now.offset)
        return Line(before.slope + now.slope, before.offset + now.offset - own.offset)


def power(base: float, exponent: float) -> float:
    """base ** exponent for a base that is not negative; the largest float where it is larger."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return sys.float_info.max


def base_for(schedule: Schedule, step: int, rate: float) -> float:
    """The base rate from which the schedule gives `rate` at `step`.

    Raises:
        InvalidArgument: the rate is negative or not finite.
        FailedPrecondition: RATE_FIXED: at this step the schedule gives the same rate whatever the base.
    """
    if not 0 <= rate < math.inf:
        refuse("rate", "lr", rate, "a finite number >= 0")
    slope, offset = schedule.line(step)
    base = (rate - offset) / slope if slope else math.inf
    if not math.isfinite(base):
        raise FailedPrecondition(
            f"the rate cannot be set at step {step}: {schedule!r} gives {offset!r} whatever the group's own rate is; "
            "give the run another schedule",
            reason="RATE_FIXED",
            schedule=repr(schedule),
            step=step,
            expected=offset,
            given=rate,
        )
    # Division rounds: a neighbour may give the very rate, and a user who sets 0.1 wants to read 0.1.
    below, above = math.nextafter(base, -math.inf), math.nextafter(base, math.inf)
    return min((base, below, above), key=lambda candidate: abs(schedule.rate(step, candidate) - rate))
