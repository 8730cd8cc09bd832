"""`stepd demo`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stepd.cli import output
from stepd.demo import STEPS

if TYPE_CHECKING:
    from stepd.demo.run import Outcome

PICTURE: Final = "stepd-demo.svg"
# Beyond these, one machine shows nothing more.
WORKERS_MAX: Final = 32
SHARDS_MAX: Final = 32


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        allow_abbrev=False,
        help="train a real classifier on a fleet of this machine",
        description=(
            "Start a fleet and worker processes on this machine, train a classifier of handwritten digits, show how it "
            "gets on, and save a picture of loss, gradient norm and learning rate."
        ),
    )
    parser.add_argument(
        "--workers", type=_count(WORKERS_MAX), default=2, metavar="N", help="worker processes (default: %(default)s)"
    )
    parser.add_argument(
        "--shards", type=_count(SHARDS_MAX), default=2, metavar="N", help="shard processes (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=_count(1_000_000), default=STEPS, metavar="N", help="of training (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(PICTURE), metavar="FILE.svg", help="the picture (default: ./%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document; the progress goes to standard error")
    parser.set_defaults(command=demo)


def demo(arguments: argparse.Namespace) -> int:
    # NumPy and all: imported by the one command that needs them.
    from rich.console import Console  # noqa: PLC0415

    from stepd.demo.progress import Progress  # noqa: PLC0415
    from stepd.demo.run import Settings, run_demo  # noqa: PLC0415

    settings = Settings(arguments.workers, arguments.shards, arguments.steps, arguments.out)
    with Progress(Console(stderr=arguments.json), steps=settings.steps) as progress:
        outcome = run_demo(settings, progress)
    if arguments.json:
        output.document(outcome.to_json())
    else:
        _summary(outcome)
    return 0 if outcome.good else 1


def _summary(outcome: Outcome) -> None:
    verdict = "" if outcome.good else f" (less than the {outcome.needed:.0%} that this demo must reach)"
    skipped = f", {outcome.skipped:,} skipped" if outcome.skipped else ""
    output.line()
    output.fields(
        [
            ("accuracy", f"{outcome.accuracy:.1%} of {outcome.held_out} held-out digits{verdict}"),
            ("steps", f"{outcome.steps:,}, {outcome.clipped:,} of them clipped{skipped}"),
            ("time", f"{outcome.seconds:.1f} s, {outcome.steps_per_second:.0f} steps/s"),
            ("workers", f"{outcome.workers} processes"),
            ("shards", f"{len(outcome.shard_pids)} processes (pids {', '.join(map(str, outcome.shard_pids))})"),
            ("picture", outcome.picture),
        ]
    )


def _count(most: int) -> Callable[[str], int]:
    """A type for argparse: an integer from 1 to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = 0
        if not 1 <= value <= most:
            raise argparse.ArgumentTypeError(f"must be an integer from 1 to {most}, got {text!r}")
        return value

    return parse
