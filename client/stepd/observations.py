"""What a worker's reports tell schedules that go by a metric: one value for each report. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from stepd.limits import OBSERVATIONS_MAX


class Observations:
    """Values on their way to the coordinator.

    The metric is "loss", or else the only one of a report; the first report that has one settles its name.

    Attributes:
        waiting: values that have not arrived, oldest first.
        before: how many came before these.
    """

    def __init__(self) -> None:
        self.waiting: deque[float] = deque()
        self.before = 0
        self._name: str | None = None

    def add(self, metrics: Mapping[str, float]) -> None:
        """Take a report in."""
        if self._name is None:
            if "loss" in metrics:
                self._name = "loss"
            elif len(metrics) == 1:
                (self._name,) = metrics
        if self._name is not None and self._name in metrics:
            self.waiting.append(metrics[self._name])
            if len(self.waiting) > OBSERVATIONS_MAX:
                self.drop_to(self.before + 1)

    def begin_anew(self) -> None:
        """What arrived was counted for another membership."""
        self.before = 0

    @property
    def end(self) -> int:
        """How many there have been, with those that are waiting."""
        return self.before + len(self.waiting)

    def drop_to(self, end: int) -> None:
        """So many have arrived, or are given up."""
        while self.before < end:
            self.waiting.popleft()
            self.before += 1
