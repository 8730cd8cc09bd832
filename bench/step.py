"""How long a step takes, beside what carries it and beside the plain way.

    python -m bench.step [--steps 15] [--json]

25M float32 parameters (100 MB) in 44 tensors, AdamW, clip by the global norm, W workers and S shards, every worker and
server a process of its own. In the same run:

(a) bare:   the same bytes over bare gRPC streams, 1 MiB raw messages there and back, W clients and S servers that do
            nothing with them (bare.py);
(b) plain:  a server as one writes it in an afternoon: a message for each tensor, gradients kept until all are in, the
            update as NumPy expressions over whole tensors (plain.py);
update:     stepd's update of one shard's piece by NumPy, alone in this process.

It says whether llvmlite (stepd[fast]) is there, which stepd then uses; STEPD_KERNELS=numpy does without.

The bar: a step takes at most 1.6 * bare + update, and at most half of plain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import numpy as np

import stepd
from bench import bare, plain
from bench.processes import WARM_UP, Servers, run_workers, time_steps
from stepd.limits import BLOCK_ELEMENTS
from stepd.memory import tune_malloc
from stepd.rules import Block, Moment
from stepd_server.kernels.compiled import available

TOPOLOGIES = ((1, 1), (2, 1), (2, 2))
LAYER = {"qkv": (512, 1536), "out": (512, 512), "up": (512, 2048), "down": (2048, 512), "ln": (2, 512), "up_b": (2048,)}
SHAPES = {"embedding": (6400, 512), "head_b": (512,)} | {
    f"layer.{i}.{name}": shape for i in range(7) for name, shape in LAYER.items()
}
ELEMENTS = sum(int(np.prod(shape)) for shape in SHAPES.values())
RATE, DECAY, CLIP = 1e-3, 0.01, 1.0


def zeros() -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}


def gradients(rank: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}


@dataclass(frozen=True)
class Row:
    """Seconds, median over steps."""

    workers: int
    shards: int
    stepd: float
    bare: float
    plain: float
    update: float

    @property
    def limit(self) -> float:
        return 1.6 * self.bare + self.update


def stepd_worker(pipe: Connection, rank: int, target: str, workers: int, steps: int) -> None:
    tune_malloc()
    grads = gradients(rank)
    with stepd.connect(target, transport="grpc") as client:
        run = client.create_run(
            "bench",
            zeros(),
            optimizer=stepd.AdamW(lr=RATE, weight_decay=DECAY),
            clip=stepd.ClipNorm(CLIP),
            sync=stepd.Sync(workers=workers),
            exist_ok=True,
        )
        with run.join(rank=rank) as worker:
            pipe.send(time_steps(steps, lambda: worker.step(grads)))


def time_stepd(workers: int, shards: int, steps: int) -> float:
    with stepd.local(shards=shards) as fleet:
        return run_workers(stepd_worker, workers, fleet.target, workers, steps)


def bare_worker(pipe: Connection, rank: int, targets: list[str], steps: int) -> None:
    del rank
    tune_malloc()

    async def run() -> list[float]:
        streams = bare.Streams(targets, 4 * ELEMENTS // len(targets))
        times = []
        for _ in range(steps + WARM_UP):
            begin = time.perf_counter()
            await streams.step()
            times.append(time.perf_counter() - begin)
        return times[WARM_UP:]

    pipe.send(asyncio.run(run()))


def time_bare(workers: int, shards: int, steps: int) -> float:
    with Servers(bare.serve, shards, 4 * ELEMENTS // shards) as targets:
        return run_workers(bare_worker, workers, targets, steps)


def plain_worker(pipe: Connection, rank: int, target: str, steps: int) -> None:
    grads, client = gradients(rank), plain.Client(target)
    pipe.send(time_steps(steps, lambda: client.step(grads)))


def time_plain(workers: int, steps: int) -> float:
    with Servers(plain.serve, 1, zeros(), workers, plain.Rule(RATE, DECAY, CLIP)) as (target,):
        return run_workers(plain_worker, workers, target, steps)


def time_update(shards: int, steps: int) -> float:
    """stepd's AdamW on one shard's piece, by blocks, in this process."""
    rule, size = stepd.AdamW(lr=RATE, weight_decay=DECAY), ELEMENTS // shards
    p, g, m, v = (np.full(size, 0.5, np.float32) for _ in range(4))
    scratch = np.empty((2, BLOCK_ELEMENTS), np.float32)

    def update() -> None:
        for at in range(0, size, BLOCK_ELEMENTS):
            end = min(at + BLOCK_ELEMENTS, size)
            gradient = np.multiply(g[at:end], 0.9, out=scratch[0, : end - at])
            block = Block(p[at:end], gradient, (m[at:end], v[at:end]), (scratch[1, : end - at],))
            rule.update(block, Moment(1, RATE))

    return statistics.median(time_steps(steps, update))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tune_malloc()
    rows = []
    if not options.json:
        print(f"{ELEMENTS:,} parameters, {4 * ELEMENTS / 1e6:.0f} MB; seconds, median of {options.steps} steps")
        loops = "compiled (llvmlite)" if available() else "NumPy"
        print(f"stepd's loops: {loops}; cores: {len(os.sched_getaffinity(0))}")
        print("         stepd  (a) bare  (b) plain  update | stepd/(a)  (b)/stepd  bar: 1.6(a)+update, (b)/2")
    for workers, shards in TOPOLOGIES:
        row = Row(
            workers,
            shards,
            stepd=time_stepd(workers, shards, options.steps),
            bare=time_bare(workers, shards, options.steps),
            plain=time_plain(workers, max(3, options.steps // 3)),
            update=time_update(shards, options.steps),
        )
        rows.append(row)
        if not options.json:
            kept = "kept" if row.stepd <= row.limit and row.stepd <= row.plain / 2 else "MISSED"
            print(
                f"W{workers}S{shards}    {row.stepd:6.3f}    {row.bare:6.3f}     {row.plain:6.3f}  {row.update:6.3f} |"
                f"      {row.stepd / row.bare:4.2f}      {row.plain / row.stepd:5.1f}"
                f"  {row.limit:.3f}, {row.plain / 2:.3f} {kept}",
                flush=True,
            )
    if options.json:
        print(json.dumps([asdict(row) | {"limit": row.limit, "compiled": available()} for row in rows]))


if __name__ == "__main__":
    main()
