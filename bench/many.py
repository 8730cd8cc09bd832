"""Many small tensors, many workers, many runs, and the smallest step: each beside the plain case, as a ratio.

    python -m bench.many [--steps 30] [--json]

tensors:  10,000 tensors of 100 elements, beside one of 1,000,000;
workers:  64 workers of a model of 1 MB, for each contribution, beside one worker;
runs:     a step of a run beside 50 runs that nobody works on, beside one that is alone;
tiny:     a step of a model of 1 KB, beside a bare unary call between two processes.

All by gRPC, one shard. The bars: 1.5, 1.5, 1.5 and 5.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import grpc.aio
import numpy as np

import stepd
from bench import bare
from bench.processes import Servers, time_steps
from stepd.memory import tune_malloc
from stepd_server.kernels.compiled import available

WARM_UP = 5
TURNS = 5
ELEMENTS, TENSORS, WORKERS, RUNS = 1_000_000, 10_000, 64, 50
MIDDLE, TINY = 250_000, 250
MODEL = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


@dataclass(frozen=True)
class Row:
    """Seconds, medians of steps."""

    name: str
    plain: float
    case: float
    bar: float

    @property
    def ratio(self) -> float:
        return self.case / self.plain


def model(elements: int, tensors: int = 1) -> MODEL:
    rng = np.random.default_rng(0)
    size = elements // tensors
    return {f"t{i}": rng.standard_normal(size, np.float32) for i in range(tensors)}


def median(steps: int, step: Callable[[], object]) -> float:
    return statistics.median(time_steps(steps, step, WARM_UP))


def create(client: stepd.Client, name: str, params: MODEL, workers: int = 1) -> stepd.Run:
    return client.create_run(
        name,
        params,
        optimizer=stepd.AdamW(lr=1e-3),
        clip=stepd.ClipNorm(1.0),
        sync=stepd.Sync(workers=workers),
    )


def time_step(client: stepd.Client, name: str, params: MODEL, steps: int) -> float:
    run = create(client, name, params)
    with run.join() as worker:
        taken = median(steps, lambda: worker.step(params))
    run.delete()
    return taken


def time_workers(client: stepd.Client, params: MODEL, steps: int) -> float:
    """Seconds for each contribution to a round of many workers, each in a thread."""
    run, taken = create(client, "many-workers", params, WORKERS), [0.0] * WORKERS

    def work(rank: int) -> None:
        with run.join(rank=rank) as worker:
            taken[rank] = median(steps, lambda: worker.step(params))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.delete()
    return statistics.median(taken) / WORKERS


async def time_unary(target: str, calls: int) -> list[float]:
    """Seconds of bare unary calls of 1 KB, asyncio to asyncio."""
    async with grpc.aio.insecure_channel(target) as channel:
        echo, times = channel.unary_unary("/Bare/Echo"), []
        for _ in range(calls + WARM_UP):
            begin = time.perf_counter()
            await echo(bytes(4 * TINY))
            times.append(time.perf_counter() - begin)
    return times[WARM_UP:]


def time_tiny(client: stepd.Client, steps: int) -> tuple[float, float]:
    """Seconds of a bare unary call and of a step, in turns: a machine is not as quick from one second to the next."""
    params, unary, tiny = model(TINY), list[float](), list[float]()
    run = create(client, "tiny", params)
    with Servers(bare.serve, 1, 0) as (target,), run.join() as worker:
        for _ in range(TURNS):
            unary += asyncio.run(time_unary(target, steps))
            tiny += time_steps(steps, lambda: worker.step(params), WARM_UP)
    run.delete()
    return statistics.median(unary), statistics.median(tiny)


def rows(steps: int) -> list[Row]:
    with stepd.local(shards=1) as fleet, stepd.connect(fleet.target, transport="grpc") as client:
        large = time_step(client, "plain", model(ELEMENTS), steps)
        tensors = time_step(client, "many-tensors", model(ELEMENTS, TENSORS), steps)
        one = time_step(client, "one-worker", model(MIDDLE), steps)
        workers = time_workers(client, model(MIDDLE), max(3, steps // 5))
        unary, tiny = time_tiny(client, steps)
        for i in range(RUNS):
            create(client, f"idle-{i}", model(MIDDLE))
        beside = time_step(client, "busy", model(MIDDLE), steps)
    return [
        Row(f"{TENSORS:,} tensors", large, tensors, 1.5),
        Row(f"{WORKERS} workers, each", one, workers, 1.5),
        Row(f"{RUNS} idle runs", one, beside, 1.5),
        Row("1 KB, to a unary call", unary, tiny, 5.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tune_malloc()
    found = rows(options.steps)
    if options.json:
        print(json.dumps([asdict(row) | {"ratio": row.ratio, "compiled": available()} for row in found]))
        return
    print(f"stepd's loops: {'compiled (llvmlite)' if available() else 'NumPy'}; milliseconds, medians")
    print("                          plain     case  ratio  bar")
    for row in found:
        kept = "kept" if row.ratio <= row.bar else "MISSED"
        print(
            f"{row.name:<22} {1e3 * row.plain:8.2f} {1e3 * row.case:8.2f}  {row.ratio:5.2f}  {row.bar:.1f} {kept}",
            flush=True,
        )


if __name__ == "__main__":
    main()
