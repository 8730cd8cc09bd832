"""The same step inside the worker: torch's clip and its fused AdamW, in this process. Needs torch and NumPy only.

    python bench/in_process.py [--steps 15]

Prints the median seconds of a step of the model of bench/same_host.py, and what a step of it takes that makes one pass
for everything (memory's own limit) as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

LAYER = [(512, 1536), (1536,), (512, 512), (512,), (512, 2048), (2048,), (2048, 512), (512,), *4 * [(512,)]]
SHAPES = [(16384, 512), *5 * LAYER]
WARM_UP = 3


def median(steps: int, step: Callable[[], object]) -> float:
    times = []
    for _ in range(steps + WARM_UP):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for param in params:
        param.grad = torch.from_numpy(rng.standard_normal(param.shape, np.float32))
    optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, fused=True)
    held = [param.grad.clone() for param in params if param.grad is not None]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    fused = median(options.steps, step)
    # Clipping in place makes the gradient small; with its first values again, no step is cheaper than another.
    for param, grad in zip(params, held, strict=True):
        param.grad = grad
    print(json.dumps({"fused": fused, "torch": torch.__version__, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
