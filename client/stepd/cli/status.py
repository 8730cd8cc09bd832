"""`stepd status` and `stepd runs`: what the fleet says of itself."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stepd.cli import output
from stepd.cli.connection import add_flags, connect

if TYPE_CHECKING:
    from stepd.info import FleetInfo, RunInfo


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser(
        "status", help="the fleet, or one run", description="Show the fleet, or one run.", allow_abbrev=False
    )
    status.add_argument("run", nargs="?", metavar="RUN", help="a run's name; without it, the fleet and its runs")
    runs = commands.add_parser(
        "runs", help="the runs of the fleet", description="List the runs of the fleet.", allow_abbrev=False
    )
    for parser, command in ((status, show_status), (runs, show_runs)):
        parser.add_argument("--json", action="store_true", help="one JSON document")
        add_flags(parser)
        parser.set_defaults(command=command)


def show_status(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        if arguments.run is not None:
            info = client.run(arguments.run).info()
            if arguments.json:
                output.document(info.to_json())
            else:
                _run(info)
            return 0
        fleet, runs = client.fleet(), client.runs()
    if arguments.json:
        output.document({"fleet": fleet.to_json(), "runs": [run.to_json() for run in runs]})
    else:
        _fleet(fleet, runs)
    return 0


def show_runs(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        runs = client.runs()
    if arguments.json:
        output.document({"runs": [run.to_json() for run in runs]})
    else:
        _runs(runs)
    return 0


def _fleet(fleet: FleetInfo, runs: Sequence[RunInfo]) -> None:
    ready = sum(shard.ready for shard in fleet.shards)
    output.fields(
        [
            ("fleet", fleet.target),
            ("version", fleet.version),
            ("shards", f"{ready} of {len(fleet.shards)} ready"),
            ("runs", str(len(runs))),
        ]
    )
    output.line()
    output.table(
        ["Shard", "Target", "Pid", "State"],
        [
            [str(shard.index), shard.target or "-", str(shard.pid or "-"), "ready" if shard.ready else "away"]
            for shard in fleet.shards
        ],
        numbers=["Shard", "Pid"],
    )
    if runs:
        output.line()
        _runs(runs)


def _runs(runs: Sequence[RunInfo]) -> None:
    output.table(
        ["Run", "Status", "Step", "Workers", "Rate", "Norm", "Size"],
        [
            [
                run.name,
                run.status,
                f"{run.step:,}",
                _workers(run),
                _rates(run.lr),
                "-" if run.last_norm is None else f"{run.last_norm:.4g}",
                output.size(run.bytes),
            ]
            for run in runs
        ],
        numbers=["Step", "Workers", "Rate", "Norm", "Size"],
    )


def _run(run: RunInfo) -> None:
    pairs = [
        ("run", run.name),
        ("status", run.status),
        ("problem", run.problem or ""),
        ("step", f"{run.step:,}"),
        ("round", f"{run.round:,}"),
        ("rate", _rates(run.lr)),
        ("optimizer", spec_text(run.optimizer)),
        ("schedule", spec_text(run.schedule)),
        ("clip", spec_text(run.clip)),
        ("sync", spec_text(run.sync)),
        ("last norm", "-" if run.last_norm is None else f"{run.last_norm:.6g}"),
        ("last clip", "-" if run.last_clip_scale is None else f"{run.last_clip_scale:.4g}"),
        ("parameters", f"{run.elements:,} in {run.parameters:,} tensors"),
        ("size", f"{output.size(run.bytes)} over all shards"),
        ("created", _ago(run.created_at)),
    ]
    output.fields([(name, value) for name, value in pairs if value])
    output.line()
    if run.workers:
        output.table(
            ["Rank", "Worker", "Joined", "Lease left", "Awaited", "Contributions", "Metrics"],
            [
                [
                    str(worker.rank),
                    worker.id,
                    _ago(worker.joined_at),
                    f"{max(worker.lease - worker.silent, 0):.1f} of {worker.lease:g} s",
                    "-" if worker.awaited is None else f"for {worker.awaited:.1f} s",
                    _counts(worker.contributions),
                    _metrics(worker.metrics),
                ]
                for worker in run.workers
            ],
            numbers=["Rank"],
        )
    else:
        output.line("no workers")
    if run.missing:
        output.line()
        output.table(
            ["Rank", "Missing", "For", "Why"],
            [
                [
                    str(place.rank),
                    place.id or "-",
                    "-" if place.since is None else f"{place.since:.0f} s",
                    place.why or "nobody has joined with this rank",
                ]
                for place in run.missing
            ],
            numbers=["Rank"],
        )


def spec_text(spec: Any) -> str:
    """A rule, schedule or policy as its user wrote it: what is not at its default."""
    if spec is None:
        return "none"
    parts = []
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if value != field.default:
            parts.append(f"{field.name}={spec_text(value) if dataclasses.is_dataclass(value) else repr(value)}")
    return f"{type(spec).__name__}({', '.join(parts)})"


def _workers(run: RunInfo) -> str:
    wanted = getattr(run.sync, "workers", None)
    return str(len(run.workers)) if wanted is None else f"{len(run.workers)} of {wanted}"


def _rates(rates: Sequence[float]) -> str:
    """One for each group; once if they are all the same."""
    shown = [f"{rate:.4g}" for rate in rates]
    return ", ".join(shown if len(set(shown)) > 1 else shown[:1])


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items())) or "-"


def _counts(contributions: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {status}" for status, count in contributions.items() if count) or "-"


def _ago(at: float) -> str:
    seconds = max(0, int(time.time() - at))
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"
