"""How long a step takes with each encoding, and how many bytes of gradients it sends.

    python -m bench.wires [--steps 10] [--json]

The model of bench/step.py (25M float32 parameters, AdamW, clip by the global norm), one worker, one shard. Median
seconds of a step through gRPC, and through shared memory, which encodes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import numpy as np

import stepd
from bench.processes import time_steps
from bench.step import CLIP, DECAY, RATE, gradients, zeros
from stepd import encodings

ROWS = (
    ("float32", stepd.Wire(), "grpc"),
    ("bfloat16", stepd.Wire("bfloat16"), "grpc"),
    ("bfloat16, pulls too", stepd.Wire("bfloat16", "bfloat16"), "grpc"),
    ("float16", stepd.Wire("float16"), "grpc"),
    ("int8", stepd.Wire("int8"), "grpc"),
    ("topk:0.01", stepd.Wire("topk:0.01"), "grpc"),
    ("shared memory", stepd.Wire(), "shm"),
)


def bytes_sent(worker: stepd.Worker, wire: stepd.Wire, grads: dict[str, np.ndarray]) -> int:
    """Of one contribution, in messages."""
    plan = worker._streams.plan  # noqa: SLF001 (as streams see it)
    views = {id_: grads[spec.name] for id_, spec in enumerate(plan.parameters)}
    encoding = encodings.of_gradients(wire.gradients)
    return sum(len(message) for push in plan.pushes(None, encoding) for message in push.messages(views, encoding))


def measure(steps: int) -> list[dict[str, Any]]:
    stepd.tune_malloc()
    params, grads = zeros(), gradients(0)
    results = []
    with stepd.local(shards=1) as fleet:
        for name, wire, transport in ROWS:
            with stepd.connect(fleet.target, transport=transport) as client:
                rule = stepd.AdamW(lr=RATE, weight_decay=DECAY)
                run = client.create_run("bench", params, optimizer=rule, clip=stepd.ClipNorm(CLIP), wire=wire)
                with run.join() as worker:
                    seconds = statistics.median(time_steps(steps, lambda: worker.step(grads)))
                    sent = bytes_sent(worker, wire, grads) if transport == "grpc" else 0
                run.delete()
            results.append({"name": name, "seconds": seconds, "bytes": sent})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = measure(options.steps)
    if options.json:
        print(json.dumps(results))
        return
    print(f"{'':20} {'seconds':>8} {'ratio':>6} {'MB sent':>8}")
    for result in results:
        ratio = result["seconds"] / results[0]["seconds"]
        print(f"{result['name']:20} {result['seconds']:8.3f} {ratio:6.2f} {result['bytes'] / 1e6:8.1f}")


if __name__ == "__main__":
    main()
