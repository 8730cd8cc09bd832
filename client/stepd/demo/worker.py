"""One worker process of the demo: `python -m stepd.demo.worker --target HOST:PORT --rank 0 --workers 2`.

It is an ordinary user of the library and nothing more. It may be started anywhere that reaches the fleet, before or
after the others; killed and started again, it takes its own place and goes on with the same batches.
On Kubernetes it is the program of an Indexed Job, whose index is the rank.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import stepd
from stepd.demo import STEPS, data, model

if TYPE_CHECKING:
    from stepd import Client, Run

RUN: Final = "digits"
# Examples that a worker puts into one step.
BATCH: Final = 32
LEARNING_RATE: Final = 3e-3
WEIGHT_DECAY: Final = 0.1
WARMUP_STEPS: Final = 100
CLIP_NORM: Final = 1.0
# Short, so that one who is killed is missed soon; not so short that a machine at its limits loses the living.
LEASE_S: Final = 6.0


@dataclass(frozen=True)
class Task:
    """What one worker is to do.

    Attributes:
        run: the run's name.
        rank: this worker's place among `workers`, from 0.
        workers: how many contribute to each step.
        steps: that the run is to make.
        batch: examples that this worker puts into one step.
        trace: print the loss of every step.
    """

    run: str
    rank: int
    workers: int
    steps: int
    batch: int = BATCH
    trace: bool = False


def open_run(client: Client, name: str, *, workers: int, steps: int) -> Run:
    """The demo's run; made by whoever comes first."""
    return client.create_run(
        name,
        model.initial(),
        optimizer=stepd.AdamW(lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        schedule=stepd.Cosine(steps, warmup_steps=min(WARMUP_STEPS, steps // 6), min_lr=LEARNING_RATE / 100),
        clip=stepd.ClipNorm(CLIP_NORM),
        sync=stepd.Sync(workers=workers, deterministic=True),
        exist_ok=True,
    )


def train(client: Client, task: Task) -> float:
    """Contribute until the run has made its steps; the answer is the accuracy on held-out digits."""
    digits = data.load()
    mine = data.share(digits.train, task.rank, task.workers)
    run = open_run(client, task.run, workers=task.workers, steps=task.steps)
    # Under its own name a worker that was started again takes over the membership that the dead one still has.
    with run.join(rank=task.rank, name=f"worker-{task.rank}", lease=LEASE_S) as worker:
        params, step = worker.pull(), run.step_count
        while step < task.steps:
            found = model.loss(params, data.batch(mine, step, task.batch, seed=task.rank))
            worker.report(loss=found.value)
            if task.trace:
                sys.stdout.write(f"{step} {found.value:.6g}\n")
            result = worker.step(found.grads)
            params, step = result.params, result.step
    return model.accuracy(params, digits.held_out)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    signal.signal(signal.SIGTERM, _leave)
    if arguments.lifeline:
        threading.Thread(target=_end_with_stdin, name="lifeline", daemon=True).start()
    task = Task(arguments.run, arguments.rank, arguments.workers, arguments.steps, arguments.batch, arguments.trace)
    try:
        with stepd.connect(arguments.target, retry_for=arguments.retry_for) as client:
            reached = train(client, task)
    except stepd.StepdError as error:
        sys.stderr.write(f"stepd demo worker {task.rank}: {error.reason}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    if task.rank == 0:
        count = len(data.load().held_out)
        sys.stdout.write(f"{reached:.1%} of {count} held-out digits recognised after {task.steps} steps\n")
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments = parser.parse_args(argv)
    for name in ("workers", "steps", "batch"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(arguments, name)}")
    if not 0 <= arguments.rank < arguments.workers:
        parser.error(f"--rank must be from 0 to {arguments.workers - 1}, got {arguments.rank}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stepd.demo.worker",
        allow_abbrev=False,
        description="One worker of the demo: trains a classifier of handwritten digits on a fleet.",
        epilog="A token and certificates are taken from STEPD_TOKEN, STEPD_CA, STEPD_CERT and STEPD_KEY.",
    )
    target = os.environ.get("STEPD_TARGET")
    # Kubernetes numbers the pods of an Indexed Job so.
    index = os.environ.get("JOB_COMPLETION_INDEX")
    parser.add_argument(
        "--target", default=target, required=target is None, help="coordinator, HOST:PORT [STEPD_TARGET]"
    )
    parser.add_argument("--run", default=RUN, help="name of the run (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=index, required=index is None, help="from 0 [JOB_COMPLETION_INDEX]")
    parser.add_argument("--workers", type=int, default=2, help="how many there are (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="that the run is to make (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=BATCH, help="examples in a step (default: %(default)s)")
    parser.add_argument(
        "--retry-for", type=float, default=120.0, metavar="S", help="seconds to wait for servers (default: %(default)s)"
    )
    parser.add_argument(
        "--trace", action="store_true", help="print a line for each step: its number from 0, and the loss"
    )
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    return parser


def _leave(_signal: int, _frame: object) -> None:
    # An exception, so that the worker leaves its run on the way out and nobody waits for its lease.
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_stdin() -> None:
    # Not through sys.stdin, whose lock this thread would still hold when the interpreter ends.
    while os.read(0, 4096):
        pass
    # Whoever started this process is gone, and the fleet with it: there is nobody to take leave of.
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
