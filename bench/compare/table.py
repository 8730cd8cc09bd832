"""What was measured, as a table in Markdown and as a chart. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.compare import bars
from bench.compare.system import System
from bench.compare.turns import Result

WORKERS = (1, 2)
MOST_S = 0.4


def by_place(results: Sequence[Result]) -> dict[tuple[str, int], Result]:
    return {(result.key, result.workers): result for result in results}


def markdown(systems: Sequence[System], results: Sequence[Result], versions: Sequence[str]) -> str:
    """The table. Seconds of a step, and of all processes' time for it; MB of the process that holds the parameters."""
    found = by_place(results)
    head = ["system", "way", "W1 s", "W2 s", "W1 cpu s", "W2 cpu s", "W1 server MB", "W2 server MB", "off by"]
    lines = [_row(head), _row(["---"] * len(head))]
    for system in systems:
        of = [found.get((system.key, workers)) for workers in WORKERS]
        if not any(of):
            continue
        lines.append(
            _row(
                [
                    f"**{system.name}**" if ours(system) else system.name,
                    system.way,
                    *[f"{one.seconds:.3f}" if one else "-" for one in of],
                    *[f"{one.processor_s:.3f}" if one else "-" for one in of],
                    *[f"{one.peak_bytes / 1e6:.0f}" if one and one.peak_bytes else "-" for one in of],
                    _worst(of),
                ]
            )
        )
    return "\n".join([*lines, "", f"{', '.join(versions)}."])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _worst(of: Sequence[Result | None]) -> str:
    known = [one.deviation for one in of if one and one.deviation is not None]
    return f"{max(known):.0e}" if known else "-"


def ours(system: System) -> bool:
    return system.module == "stepd_fleet"


def chart(systems: Sequence[System], results: Sequence[Result], subtitle: str) -> str:
    """Bars of seconds, the shortest with one worker first."""
    found = by_place(results)
    groups = [
        bars.Group(
            f"{system.name} ({system.way})".replace("`", "").replace(" (none)", ""),
            tuple(one.seconds if (one := found.get((system.key, workers))) else None for workers in WORKERS),
            ours(system),
        )
        for system in systems
        if any((system.key, workers) in found for workers in WORKERS)
    ]
    groups.sort(key=lambda group: group.values[0] or 0.0)
    return bars.render(groups, ("one worker", "two workers"), title="Seconds of a step", subtitle=subtitle, most=MOST_S)
