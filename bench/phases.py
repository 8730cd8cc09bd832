"""Where the time of a step goes on a shard, by transport and with one and two workers.

    python -m bench.phases [--steps 15] [--json]

Workload W of bench/compare, one shard. Milliseconds, means over the steps: the phases of docs/metrics.md, and the whole
step as workers see it. STEPD_KERNELS=numpy does without compiled loops.
"""

from __future__ import annotations

import argparse
import json
import re
import urllib.request
from multiprocessing.connection import Connection

import stepd
from bench.compare.network import free_port
from bench.compare.systems.stepd_fleet import create_run
from bench.compare.workload import parameters
from bench.processes import WARM_UP, run_workers, time_steps
from stepd.memory import tune_malloc
from stepd_server.kernels.compiled import available

PHASES = ("receive", "wait", "reduce", "apply", "send")
TRANSPORTS = ("shm", "grpc")


def worker(pipe: Connection, rank: int, target: str, transport: str, workers: int, steps: int) -> None:
    tune_malloc()
    with stepd.connect(target, transport=transport) as client:
        run = create_run(client, workers)
        grads = parameters()
        with run.join(rank=rank) as member:
            if transport == "shm":
                lent = member.gradient_buffers()
                for name, array in lent.items():
                    array[...] = grads[name]
                grads = lent
            pipe.send(time_steps(steps, lambda: member.step(grads)))


def phases_of(address: str) -> dict[str, float]:
    """Mean seconds of each phase so far, from the metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics") as answer:
        text = answer.read().decode()
    values = {
        (kind, labels): float(value)
        for kind, labels, value in re.findall(r"^stepd_step_seconds_(sum|count)\{(.*?)\} (\S+)$", text, re.MULTILINE)
    }
    found = {}
    for phase in PHASES:
        of = {kind: value for (kind, labels), value in values.items() if f'phase="{phase}"' in labels}
        found[phase] = of["sum"] / of["count"] if of.get("count") else 0.0
    return found


def measure(transport: str, workers: int, steps: int) -> dict[str, float]:
    address = f"127.0.0.1:{free_port()}"
    with stepd.local(shards=1, env={"STEPD_SERVER_METRICS": address}) as fleet:
        step = run_workers(worker, workers, fleet.target, transport, workers, steps)
        return phases_of(address) | {"step": step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {
        f"{transport} W{workers}": measure(transport, workers, options.steps)
        for transport in TRANSPORTS
        for workers in (1, 2)
    }
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"loops: {'compiled' if available() else 'NumPy'}; milliseconds; {WARM_UP} steps of warm-up are in the phases"
    )
    print(f"{'':10}" + "".join(f"{name:>9}" for name in (*PHASES, "step")))
    for name, row in found.items():
        print(f"{name:10}" + "".join(f"{1e3 * row[phase]:9.1f}" for phase in (*PHASES, "step")))


if __name__ == "__main__":
    main()
