"""What the demo shows while it trains: a live bar on a terminal, a line a second elsewhere."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, Self

from rich import progress as rich_progress
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from stepd.info import StepEvent

# Between two lines where no bar can be drawn.
LINE_S: Final = 1.0
# Steps per second are counted over this.
SPEED_S: Final = 2.0


class Progress:
    """A context manager that shows events of a run of `steps` steps."""

    def __init__(self, console: Console, *, steps: int) -> None:
        self._console, self._steps = console, steps
        self._recent: deque[StepEvent] = deque()
        self._loss: float | None = None
        self._next_line = 0.0
        self._bar: rich_progress.Progress | None = None
        if console.is_terminal:
            self._bar = rich_progress.Progress(
                # As wide as the numbers leave room for: all of it fits 80 columns.
                rich_progress.BarColumn(bar_width=None),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.description}"),
                rich_progress.TimeElapsedColumn(),
                console=console,
                expand=True,
            )
            self._task = self._bar.add_task("starting a fleet", total=steps)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        else:
            self._say("starting a fleet")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def started(self, shard_pids: list[int]) -> None:
        """The fleet is up, and the workers are about to start."""
        if self._bar:
            self._bar.update(self._task, description="starting the workers")
        else:
            self._say(f"training on {len(shard_pids)} shards (pids {', '.join(map(str, shard_pids))})")

    def show(self, event: StepEvent) -> None:
        self._recent.append(event)
        while event.at - self._recent[0].at > SPEED_S:
            self._recent.popleft()
        self._loss = event.metrics.get("loss", self._loss)
        if self._bar:
            self._bar.update(self._task, completed=event.step, description=self._numbers(event))
        elif time.monotonic() >= self._next_line or event.step == self._steps:
            self._next_line = time.monotonic() + LINE_S
            self._say(f"step {event.step:>5}/{self._steps}  {self._numbers(event)}")

    def _numbers(self, event: StepEvent) -> str:
        loss = "-" if self._loss is None else f"{self._loss:.4f}"
        return (
            f"loss {loss:<6} lr {event.lr[0]:.5f} norm {event.grad_norm:.3f} "
            f"clip {event.clip_scale:.2f} {self._speed():.0f} steps/s"
        )

    def _speed(self) -> float:
        seconds = self._recent[-1].at - self._recent[0].at
        return (len(self._recent) - 1) / seconds if seconds > 0 else 0.0

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
