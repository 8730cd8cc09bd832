"""How long a step takes with workers and shards on one host, through shared memory, beside the same step in process.

    python bench/same_host.py [--steps 15] [--torch PYTHON] [--workers 1,2] [--shards 1] [--json]

61 float32 tensors, 24.15M parameters (96.6 MB), AdamW, clip by the global norm to 1. Every worker hands its whole
gradient over and has the new parameters afterwards, W workers and S shards, each a process of its own:

arrays:   gradients in arrays of the worker, parameters as copies;
buffers:  gradients in `gradient_buffers()`, parameters as copies;
views:    the same, and parameters as views of the shard's memory.

`--torch` names a Python that has torch; the step of its fused AdamW and clip in that process is measured before and
after, and rows are given as multiples of the median.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import stepd
from stepd.memory import tune_malloc
from stepd_server.kernels.compiled import available

LAYER = [(512, 1536), (1536,), (512, 512), (512,), (512, 2048), (2048,), (2048, 512), (512,), *4 * [(512,)]]
SHAPES = {f"p{i}": shape for i, shape in enumerate([(16384, 512), *5 * LAYER])}
WAYS = ("arrays", "buffers", "views")
WARM_UP = 5
SPAWN = multiprocessing.get_context("spawn")


def work(target: str, way: str, rank: int, workers: int, steps: int, out: Connection) -> None:
    """One worker: sends the seconds of its steps."""
    tune_malloc()
    rng = np.random.default_rng(rank)
    grads = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
    with stepd.connect(target, transport="shm") as client:
        run = client.create_run(
            f"{way}-{workers}",
            {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
            optimizer=stepd.AdamW(lr=1e-3, weight_decay=0.01),
            clip=stepd.ClipNorm(1.0),
            sync=stepd.Sync(workers=workers),
            exist_ok=True,
        )
        with run.join(rank=rank) as worker:
            if way != "arrays":
                lent = worker.gradient_buffers()
                for name, array in lent.items():
                    array[...] = grads[name]
                grads = lent
            options: dict[str, Any] = {"view": True} if way == "views" else {}
            params: Any = None
            times: list[float] = []
            for done in range(steps + WARM_UP):
                if done == WARM_UP:
                    times.clear()
                    spent = time.process_time()
                    out.send(None)
                begin = time.perf_counter()
                params = worker.step(grads, **options).params
                times.append(time.perf_counter() - begin)
            out.send((times, (time.process_time() - spent) / steps, float(params["p0"][0, 0])))
            out.recv()


def measure(fleet: stepd.LocalFleet, way: str, workers: int, steps: int) -> dict[str, float]:
    """Median seconds of a step, and processor seconds of all workers and of all shards for one."""
    pairs = [SPAWN.Pipe() for _ in range(workers)]
    started = [
        SPAWN.Process(target=work, args=(fleet.target, way, rank, workers, steps, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pairs)
    ]
    for process, (_, theirs) in zip(started, pairs, strict=True):
        process.start()
        theirs.close()
    for ours, _ in pairs:
        ours.recv()
    before = processor_seconds(fleet)
    results = [ours.recv() for ours, _ in pairs]
    shards = (processor_seconds(fleet) - before) / steps
    for process, (ours, _) in zip(started, pairs, strict=True):
        ours.send(None)
        process.join()
    times = [t for found, _, _ in results for t in found]
    spent = sum(seconds for _, seconds, _ in results)
    return {
        "seconds": statistics.median(times),
        "least": min(times),
        "workers_processor": spent,
        "shards_processor": shards,
    }


def processor_seconds(fleet: stepd.LocalFleet) -> float:
    """What all shards have used."""
    total = 0
    for shard in fleet.shards:
        fields = Path(f"/proc/{shard.pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def in_process(python: str, steps: int) -> float:
    script = Path(__file__).with_name("in_process.py")
    answer = subprocess.run([python, str(script), "--steps", str(steps)], check=True, capture_output=True, text=True)
    return float(json.loads(answer.stdout)["fused"])


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--torch", help="a Python that has torch")
    parser.add_argument("--workers", type=numbers, default=[1, 2])
    parser.add_argument("--shards", type=numbers, default=[1])
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    fused = [in_process(options.torch, options.steps)] if options.torch else []
    rows = []
    for shards in options.shards:
        with stepd.local(shards=shards) as fleet:
            for workers in options.workers:
                for way in options.ways:
                    rows.append(
                        {"workers": workers, "shards": shards, "way": way} | measure(fleet, way, workers, options.steps)
                    )
                    if options.torch:
                        fused.append(in_process(options.torch, options.steps))
    reference = statistics.median(fused) if fused else None
    if options.json:
        print(json.dumps({"compiled": available(), "in_process": reference, "rows": rows}))
        return
    print(f"stepd's loops: {'compiled (llvmlite)' if available() else 'NumPy'}; cores: {len(os.sched_getaffinity(0))}")
    if reference:
        print(f"in process, torch fused AdamW and clip: {1e3 * reference:.1f} ms")
    for row in rows:
        beside = f"{row['seconds'] / reference:6.2f} times" if reference else ""
        print(
            f"W{row['workers']}S{row['shards']} {row['way']:<8} {1e3 * row['seconds']:7.1f} ms"
            f" (least {1e3 * row['least']:.1f}); processor: workers {1e3 * row['workers_processor']:.0f},"
            f" shards {1e3 * row['shards_processor']:.0f} {beside}"
        )


if __name__ == "__main__":
    main()
