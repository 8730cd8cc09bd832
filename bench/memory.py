"""What a shard's memory is made of, beside the bar: state, one accumulator and 150 MB.

    python -m bench.memory [--workers 1 2] [--steps 10] [--json]

Workload W of bench/compare on one shard, by gRPC, in bfloat16, and through shared memory with `gradient_buffers`. MB
after so many steps, and the most that there was at any time. STEPD_KERNELS=numpy does without compiled loops.

state, sum: parameters and moments, and the accumulator: files in memory, whole from the beginning;
workers:    gradients that workers lend. Their memory, not the shard's: it maps it, and so it counts in its peak;
files:      of programs and libraries, which the system can take back;
own:        what the process has allocated: messages, buffers, Python.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import stepd
from bench.compare.systems.stepd_fleet import create_run
from bench.compare.workload import parameters
from bench.processes import Process, time_steps, until_closed
from bench.usage import peak_bytes
from stepd.memory import tune_malloc
from stepd_server.kernels.compiled import available

KINDS: Final = ("state", "sum", "workers", "files", "own")
# Transport and encoding.
WAYS: Final = {"grpc": ("grpc", "float32"), "bfloat16": ("grpc", "bfloat16"), "shm": ("shm", "float32")}
BAR_BYTES: Final = 150e6


def worker(pipe: Connection, rank: int, target: str, way: str, workers: int, steps: int) -> None:
    tune_malloc()
    transport, encoding = WAYS[way]
    with stepd.connect(target, transport=transport) as client:
        run = create_run(client, workers, stepd.Wire(encoding, encoding))
        with run.join(rank=rank) as member:
            grads = member.gradient_buffers() if transport == "shm" else parameters()
            pipe.send(time_steps(steps, lambda: member.step(grads)))
            until_closed(pipe)


def kind_of(path: str, anonymous: bool) -> str:
    """Of a mapping: what it holds."""
    if path.startswith("/memfd:"):
        return "workers"
    if "/runs/" in path:
        return "sum" if path.endswith("/accumulator") else "state"
    return "own" if anonymous else "files"


def made_of(smaps: str) -> dict[str, int]:
    """Bytes of each kind, from a process's smaps."""
    found, path, resident = Counter(dict.fromkeys(KINDS, 0)), "", 0
    for line in smaps.splitlines():
        if head := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)", line):
            path = head[1]
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
        elif line.startswith("Anonymous:"):
            anonymous = int(line.split()[1]) * 1024
            found[kind_of(path, anonymous=True)] += anonymous
            found[kind_of(path, anonymous=False)] += resident - anonymous
    return dict(found)


def measure(way: str, workers: int, steps: int) -> dict[str, float]:
    with stepd.local(shards=1) as fleet:
        started = [Process(worker, rank, fleet.target, way, workers, steps) for rank in range(workers)]
        for one in started:
            one.receive()
        (pid,) = [shard.pid for shard in fleet.shards]
        found = made_of(Path(f"/proc/{pid}/smaps").read_text())
        peak = peak_bytes([pid])
        for one in started:
            one.end(10.0)
    return {**found, "peak": peak, "bar": found["state"] + found["sum"] + BAR_BYTES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {f"{way} W{workers}": measure(way, workers, options.steps) for way in WAYS for workers in options.workers}
    if options.json:
        print(json.dumps(rows))
        return
    print(f"loops: {'compiled' if available() else 'NumPy'}; MB")
    print(f"{'':12}" + "".join(f"{name:>9}" for name in (*KINDS, "peak")) + "  peak without workers'   bar")
    for name, row in rows.items():
        without = row["peak"] - row["workers"]
        print(
            f"{name:12}"
            + "".join(f"{row[kind] / 1e6:9.0f}" for kind in (*KINDS, "peak"))
            + f"{without / 1e6:14.0f} {'kept' if without <= row['bar'] else 'MISSED':<8}{row['bar'] / 1e6:6.0f}"
        )


if __name__ == "__main__":
    main()
