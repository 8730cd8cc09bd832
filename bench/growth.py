"""How the time of a step grows with the size of the model, with the workers and with the shards.

    python -m bench.growth [--quick] [--only size workers shards] [--json] [--no-write]

AdamW, clip by the global norm, float32; one worker and one shard unless that is what grows.

size:     1 MB to 2 GB, by gRPC and through shared memory (with gradients in arrays of `gradient_buffers`);
workers:  1 to 32 with a model of 16 MB by gRPC, each a process;
shards:   1 to 8 with a model of 100 MB and two workers by gRPC.

Median seconds of a step, and the exponent of a power law through them: 1 is proportional. Of sizes it is fitted from
16 MB on: below that a step is calls and not bytes. Sizes for which the memory does not suffice are left out. What is
not quick is written to docs/benchmarks.md and docs/growth-*.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection

import numpy as np

import stepd
from bench import pages
from bench.fit import PowerLaw, power_law
from bench.processes import run_workers, time_steps
from bench.usage import available_bytes
from stepd import chart
from stepd.memory import tune_malloc
from stepd_server.kernels.compiled import available

TENSORS = 32
# What a model takes while it is measured, in times its parameters: parameters, two moments and the sum on the shard;
# gradient and parameters (two sets in turns) at the worker, and a copy on its way there.
MEMORY_TIMES = 9
FITTED_FROM_MB = 16


@dataclass(frozen=True)
class Growth:
    """One line.

    Attributes:
        key: what it is about.
        title: of its plot.
        x_label: of its axis.
        fitted_from: the fit leaves out what is smaller.
        xs: what grows.
        ys: seconds of a step.
    """

    key: str
    title: str
    x_label: str
    fitted_from: float = 0.0
    xs: list[float] = field(default_factory=list)
    ys: list[float] = field(default_factory=list)

    @property
    def fit(self) -> PowerLaw | None:
        points = [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if x >= self.fitted_from]
        return power_law(*zip(*points, strict=True)) if len(points) > 1 else None

    def panel(self) -> chart.Panel:
        lines = [chart.Line(self.xs, self.ys)]
        if fit := self.fit:
            lines.append(chart.Line(self.xs, [fit.at(x) for x in self.xs], faint=True))
        slope = f", slope {fit.exponent:.2f}" if fit else ""
        return chart.Panel(self.title, f"seconds of a step{slope}", tuple(lines), log=True)

    def row(self) -> str:
        slope = f"{self.fit.exponent:.2f}" if self.fit else "-"
        points = ", ".join(f"{x:g}: {y:.3g}" for x, y in zip(self.xs, self.ys, strict=True))
        return f"| {self.title} | {slope} | {points} |"


def worker(
    pipe: Connection, rank: int, target: str, transport: str, megabytes: float, workers: int, steps: int
) -> None:
    tune_malloc()
    size = int(megabytes * 1e6 / 4 / TENSORS)
    params = {f"t{i}": np.zeros(size, np.float32) for i in range(TENSORS)}
    with stepd.connect(target, transport=transport) as client:
        run = client.create_run(
            f"growth-{megabytes:g}",
            params,
            optimizer=stepd.AdamW(1e-3),
            clip=stepd.ClipNorm(1.0),
            sync=stepd.Sync(workers=workers),
            exist_ok=True,
        )
        with run.join(rank=rank) as member:
            grads = member.gradient_buffers() if transport == "shm" else params
            del params
            rng = np.random.default_rng(rank)
            for array in grads.values():
                rng.standard_normal(out=array, dtype=np.float32)
            times = time_steps(steps, lambda: member.step(grads))
        pipe.send(times)


def time_step(megabytes: float, *, steps: int, workers: int = 1, shards: int = 1, transport: str = "grpc") -> float:
    with stepd.local(shards=shards) as fleet:
        return run_workers(worker, workers, fleet.target, transport, megabytes, workers, steps)


def fits(megabytes: float) -> bool:
    return megabytes * 1e6 * MEMORY_TIMES < available_bytes()


def by_size(*, quick: bool) -> list[Growth]:
    found = []
    for transport, name in (("grpc", "gRPC"), ("shm", "shared memory")):
        growth = Growth(f"size-{transport}", f"Size of the model, {name}", "MB", FITTED_FROM_MB)
        for megabytes in (1, 16, 64, 256) if quick else (1, 4, 16, 64, 256, 1024, 2048):
            if not fits(megabytes):
                print(f"{megabytes} MB is left out: too little memory is free", file=sys.stderr)
                continue
            steps = 5 if megabytes >= 1024 else 15
            add(growth, megabytes, time_step(megabytes, steps=5 if quick else steps, transport=transport))
        found.append(growth)
    return found


def by_workers(*, quick: bool) -> list[Growth]:
    growth = Growth("workers", "Workers, a model of 16 MB", "workers")
    for workers in (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16, 32):
        add(growth, workers, time_step(16, steps=5 if quick else 15, workers=workers))
    return [growth]


def by_shards(*, quick: bool) -> list[Growth]:
    growth = Growth("shards", "Shards, a model of 100 MB, two workers", "shards")
    for shards in (1, 2, 4) if quick else (1, 2, 4, 8):
        add(growth, shards, time_step(100, steps=5 if quick else 15, workers=2, shards=shards))
    return [growth]


KINDS: dict[str, Callable[..., list[Growth]]] = {"size": by_size, "workers": by_workers, "shards": by_shards}


def add(growth: Growth, x: float, y: float) -> None:
    growth.xs.append(x)
    growth.ys.append(y)
    print(f"{growth.title}: {x:g}: {y:.4f} s", file=sys.stderr, flush=True)


def write(kind: str, growths: Sequence[Growth]) -> None:
    picture = f"growth-{kind}.svg"
    pages.write(f"growth-{kind}", f"![A step over {kind}]({picture})\n\n{markdown(growths)}")
    svg = chart.render(
        [growth.panel() for growth in growths],
        title=f"A step over {'the size of the model' if kind == 'size' else kind}",
        subtitle="medians; the thin line is the power law",
        x_label=growths[0].x_label,
        log_x=True,
    )
    (pages.DOCS / picture).write_text(svg)


def markdown(growths: Sequence[Growth]) -> str:
    loops = "compiled" if available() else "NumPy"
    versions = ", ".join(pages.versions(("numpy", "grpcio")))
    lines = ["| | slope | seconds |", "| --- | --- | --- |", *[growth.row() for growth in growths]]
    return "\n".join([*lines, "", f"Loops: {loops}. {versions}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="leave the documentation as it is")
    options = parser.parse_args()
    growths = []
    for kind in options.only:
        found = KINDS[kind](quick=options.quick)
        growths += found
        if not (options.quick or options.no_write):
            write(kind, found)
    if options.json:
        print(json.dumps([asdict(growth) | {"slope": growth.fit and growth.fit.exponent} for growth in growths]))
    else:
        print(markdown(growths))


if __name__ == "__main__":
    main()
