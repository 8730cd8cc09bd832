"""Averages of the cases' parameters: what torch.optim.swa_utils.AveragedModel makes of them.

The equal mean is that of torch on the CPU: the fused one (get_swa_multi_avg_fn, used on accelerators) rounds the share
of each step to float32, which is an error of 2e-9 in float64.

Every case of AVERAGED_CASES with every average, at steps in the middle and at the end.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .cases import CASES, TOLERANCE, Arrays, Case, stored_numbers

AVERAGES_STORED = Path(__file__).with_name("torch_averages_2_13.npz")

# Names and arguments of stepd's averages. The first step is 1.
AVERAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "ema": ("EMA", {"decay": 0.9}),
    "ema-short": ("EMA", {"decay": 0.25}),
    "swa": ("SWA", {"start": 20, "every": 7}),
    "swa-all": ("SWA", {"start": 1}),
}
AVERAGED_CASES = {
    f"{name}-{dtype}": CASES[f"{name}-{dtype}"]
    for name in ("adamw-clip-cosine", "sgd-nesterov-gaps")
    for dtype in TOLERANCE
}
AVERAGED_STEPS = (19, 50, 100)


def counts(average: str, step: int) -> bool:
    """Whether a step goes into an average."""
    kind, arguments = AVERAGES[average]
    first, every = arguments.get("start", 1), arguments.get("every", 1)
    return kind == "EMA" or (step >= first and (step - first) % every == 0)


def reference_average(case: Case, average: str, step: int) -> Arrays:
    """What torch's average holds after a step; the parameters as long as it has averaged nothing."""
    flat = stored_numbers(AVERAGES_STORED)[f"{case.name}/{average}/{step}"]
    sizes = [math.prod(shape) for shape in case.shapes.values()]
    return dict(zip(case.shapes, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))
