"""The demo on this machine: a fleet and its workers as processes, followed from the first step to the picture."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import stepd
from stepd.demo import data, model
from stepd.demo.crew import Crew
from stepd.demo.picture import picture
from stepd.demo.worker import RUN, open_run
from stepd.errors import StepdError

if TYPE_CHECKING:
    from stepd import Watch
    from stepd.demo.progress import Progress
    from stepd.info import StepEvent

ACCURACY_NEEDED: Final = 0.95
# How often the workers are looked after while no step ends.
LOOK_S: Final = 0.1
# Without an event for so long after the workers have ended, none will come.
QUIET_S: Final = 1.0
# Time for the workers to leave after the last step.
LEAVE_S: Final = 10.0


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        workers: worker processes.
        shards: shard processes.
        steps: of training.
        out: where the picture goes.
    """

    workers: int
    shards: int
    steps: int
    out: Path


@dataclass
class Record:
    """The steps as they were watched."""

    events: list[StepEvent] = field(default_factory=list)

    @property
    def applied(self) -> list[StepEvent]:
        return [event for event in self.events if event.outcome == "applied"]

    @property
    def clipped(self) -> int:
        return sum(event.clip_scale < 1 for event in self.applied)

    @property
    def seconds(self) -> float:
        """From the first decision to the last."""
        return self.events[-1].at - self.events[0].at if self.events else 0.0

    @property
    def steps_per_second(self) -> float:
        return (len(self.events) - 1) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        accuracy: the share of held-out digits that are recognised.
        held_out: how many there are.
        steps: made.
        seconds: from the first to the last.
        steps_per_second: on average.
        clipped: steps in which the clip by norm bit.
        skipped: steps in which nothing changed.
        loss: of the last step, the mean over the workers; None if there was no step.
        workers: worker processes.
        shard_pids: by index.
        picture: the file's absolute path.
        needed: the accuracy that the demo must reach.
    """

    accuracy: float
    held_out: int
    steps: int
    seconds: float
    steps_per_second: float
    clipped: int
    skipped: int
    loss: float | None
    workers: int
    shard_pids: list[int]
    picture: str
    needed: float = ACCURACY_NEEDED

    @property
    def good(self) -> bool:
        return self.accuracy >= self.needed

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


def run_demo(settings: Settings, progress: Progress) -> Outcome:
    """Start everything, train, measure, draw, end everything.

    Raises:
        StepdError: the fleet did not start, a worker failed, or the picture could not be written.
    """
    out = settings.out.absolute()
    _check_writable(out)
    digits = data.load()
    with (
        stepd.local(shards=settings.shards) as fleet,
        stepd.connect(fleet.target) as client,
    ):
        # Made and watched before any worker is there, so that the very first step is seen.
        run = open_run(client, RUN, workers=settings.workers, steps=settings.steps)
        shard_pids = [shard.pid for shard in fleet.shards]
        progress.started(shard_pids)
        with (
            run.watch() as watch,
            Crew(fleet.target, run=RUN, workers=settings.workers, steps=settings.steps) as crew,
        ):
            record = Record()
            for event in _follow(watch, crew, settings.steps):
                record.events.append(event)
                progress.show(event)
            crew.wait(LEAVE_S)
            losses = crew.losses()
        accuracy = model.accuracy(run.pull(), digits.held_out)
        outcome = Outcome(
            accuracy=accuracy,
            held_out=len(digits.held_out),
            steps=run.step_count,
            seconds=round(record.seconds, 3),
            steps_per_second=round(record.steps_per_second, 1),
            clipped=record.clipped,
            skipped=sum(event.outcome == "skipped" for event in record.events),
            loss=list(losses.values())[-1] if losses else None,
            workers=settings.workers,
            shard_pids=shard_pids,
            picture=str(out),
        )
    _write(out, picture(record.applied, losses, outcome))
    return outcome


def _follow(watch: Watch, crew: Crew, steps: int) -> Iterator[StepEvent]:
    """The events of a run up to its last step, as long as all is well with the workers."""
    events: queue.SimpleQueue[StepEvent | StepdError] = queue.SimpleQueue()

    def read() -> None:
        try:
            for event in watch:
                events.put(event)
        except StepdError as error:  # or it was closed, and nobody reads this
            events.put(error)

    # In a thread, because waiting for an event must not keep this command from seeing a worker that fails.
    threading.Thread(target=read, name="stepd-demo-watch", daemon=True).start()
    step = 0
    quiet_since = time.monotonic()
    while step < steps:
        try:
            event = events.get(timeout=LOOK_S)
        except queue.Empty:
            crew.check()
            # The last events may be lost with a coordinator that was killed and started again.
            if crew.done and time.monotonic() - quiet_since > QUIET_S:
                return
            continue
        if isinstance(event, StepdError):
            crew.check()  # the cause rather than its consequence
            raise event
        quiet_since = time.monotonic()
        step = event.step
        yield event


def _check_writable(out: Path) -> None:
    """Say it before the training and not after it."""
    if out.is_dir():
        raise stepd.InvalidArgument(f"--out {out} is a folder; give the name of a file", out=str(out))
    if not out.parent.is_dir():
        raise stepd.InvalidArgument(f"--out {out}: there is no folder {out.parent}", out=str(out))


def _write(out: Path, svg: str) -> None:
    try:
        out.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise StepdError(f"cannot write {out}: {error.strerror}", reason="NOT_WRITABLE", out=str(out)) from error
