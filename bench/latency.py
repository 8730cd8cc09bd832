"""How long a step of a small model takes, and where the processor time goes.

    python -m bench.latency [--steps 300] [--json]

5,000 float32 parameters, AdamW, clip by the global norm, one worker: nothing but calls. Mean over steps.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

import stepd
from bench.usage import processor_s

WARM_UP = 20


def measure(shards: int, steps: int) -> dict[str, float]:
    """Milliseconds a step: of the clock, and of the processor by role."""
    grads = {"w": np.ones(5000, np.float32)}
    with stepd.local(shards=shards) as fleet, stepd.connect(fleet.target, transport="grpc") as client:
        run = client.create_run("small", grads, optimizer=stepd.AdamW(), clip=stepd.ClipNorm(1.0))
        pids = {"coordinator": fleet.coordinator.pid, "worker": os.getpid()}
        pids |= {f"shard {shard.index}": shard.pid for shard in fleet.shards}
        with run.join() as worker:
            for _ in range(WARM_UP):
                worker.step(grads)
            used = {role: processor_s([pid]) for role, pid in pids.items()}
            begin = time.perf_counter()
            for _ in range(steps):
                worker.step(grads)
            result = {"step": time.perf_counter() - begin}
            result |= {role: processor_s([pid]) - used[role] for role, pid in pids.items()}
    return {name: seconds / steps * 1e3 for name, seconds in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {shards: measure(shards, options.steps) for shards in (1, 2)}
    if options.json:
        print(json.dumps(results))
        return
    for shards, result in results.items():
        parts = ", ".join(f"{role} {ms:.1f}" for role, ms in result.items() if role != "step")
        print(f"{shards} shard{'s' * (shards > 1)}: {result['step']:.1f} ms a step; processor ms a step: {parts}")


if __name__ == "__main__":
    main()
