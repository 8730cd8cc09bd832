"""A step through stepd beside the same step through other systems, and without any.

    python -m bench.compare [--quick] [--only KEY ...] [--workers 1 2] [--json] [--no-write]

Workload W (workload.py): 24.15M float32 parameters in 61 tensors. Every worker hands over its whole gradient; mean,
norm of everything clipped to 1, AdamW; every worker has the new parameters in its own memory, or a view there.
One server, one or two workers; all systems (catalogue.py) in turns of a few steps; seconds are medians over the steps
of all workers. After the last step every system's parameters are compared with those of torch in one process: `off by`
is the difference (root of the mean square of a tensor), as a part of the way that a parameter can go in so many steps.
Systems that are not installed are left out. `make bench-setup` installs them.

Whole runs are written to docs/benchmarks.md and docs/benchmarks.svg.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bench import pages
from bench.compare.catalogue import SYSTEMS, lacking
from bench.compare.system import System
from bench.compare.table import chart, markdown
from bench.compare.turns import Length, Result, groups_of, measure
from bench.compare.workload import Files
from bench.processes import Process, by_name
from bench.usage import available_bytes

WHOLE, QUICK = Length(turns=3, block=5, warm_up=6), Length(turns=2, block=3, warm_up=4)
PACKAGES = ("numpy", "grpcio", "protobuf", "llvmlite", "torch", "ray")


BEGAN = time.perf_counter()


def say(text: str) -> None:
    print(f"{time.perf_counter() - BEGAN:6.1f} s: {text}", file=sys.stderr, flush=True)


def chosen(keys: list[str], *, quick: bool) -> list[System]:
    systems = [system for system in SYSTEMS if (system.key in keys if keys else system.quick or not quick)]
    for system in systems:
        if missing := lacking(system):
            say(f"{system.key} is left out: {', '.join(missing)} not installed (make bench-setup)")
    return [system for system in systems if not lacking(system)]


def run(systems: list[System], counts: list[int], length: Length) -> list[Result]:
    check = importlib.util.find_spec("torch") is not None
    if not check:
        say("numbers are not checked: torch is not installed")
    results = []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="bench-") as folder:
        files = Files(Path(folder))
        files.write(max(counts))
        if check:
            wanted = {(workers, length.steps_of(system)) for workers in counts for system in systems}
            with Process(by_name, "bench.compare.reference", "write_expected", files, wanted) as process:
                process.receive()
        for workers in counts:
            taking_part = [system for system in systems if workers <= system.workers_max]
            for group in groups_of(taking_part, workers, 0.8 * available_bytes()):
                results += measure(group, workers, files, length, say, check=check)
    return results


def wrong(systems: list[System], results: list[Result]) -> list[str]:
    """Whose numbers are not torch's."""
    tolerances = {system.key: system.tolerance for system in systems}
    return [
        f"{result.key} with {result.workers} workers is off by {result.deviation:.1e}"
        for result in results
        if result.deviation is not None and not result.deviation <= (tolerances[result.key] or 0.0)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one worker, few steps, and not every variant")
    parser.add_argument("--only", nargs="*", default=[], metavar="KEY", choices=[s.key for s in SYSTEMS])
    parser.add_argument("--workers", nargs="*", type=int, help="how many (default: 1 2; with --quick: 1)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="leave the documentation as it is")
    options = parser.parse_args()
    counts = options.workers or ([1] if options.quick else [1, 2])
    systems, versions = chosen(options.only, quick=options.quick), pages.versions(PACKAGES)
    results = run(systems, counts, QUICK if options.quick else WHOLE)
    table = markdown(systems, results, versions)
    if options.json:
        print(json.dumps({"versions": versions, "results": [asdict(result) for result in results]}))
    else:
        print(table)
    if not (options.quick or options.only or options.no_write or counts != [1, 2]):
        pages.write("compare", table)
        subtitle = "24.15M float32 parameters, AdamW, clip; every worker a process; medians"
        (pages.DOCS / "benchmarks.svg").write_text(chart(systems, results, subtitle))
    if problems := wrong(systems, results):
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
