"""The right numbers: torch's AdamW in this process, with the clip by the exact norm.

Clipping by `clip_grad_norm_` would do for the eye, but torch's float32 norm of 24M elements is off by up to 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from multiprocessing.connection import Connection

import numpy as np
import torch

from bench.compare.systems.torch_step import optimizer_of, tensors
from bench.compare.workload import CLIP, IN_TURNS, SHAPES, Array, Files, parameters


def write_expected(pipe: Connection, files: Files, wanted: Collection[tuple[int, int]]) -> None:
    """Write the parameters after each (workers, steps) that is wanted; send None when done."""
    for workers in {workers for workers, _ in wanted}:
        lengths = {steps for count, steps in wanted if count == workers}
        clipped = [_clipped([files.gradients(rank)[turn] for rank in range(workers)]) for turn in range(IN_TURNS)]
        params = tensors(parameters())
        optimizer = optimizer_of(params.values())
        for step in range(max(lengths)):
            for name, param in params.items():
                param.grad = clipped[step % IN_TURNS][name]
            optimizer.step()
            if step + 1 in lengths:
                whole = np.concatenate([params[name].detach().numpy().ravel() for name in SHAPES])
                whole.tofile(files.expected(workers, step + 1))
    pipe.send(None)


def _clipped(gradients: list[dict[str, Array]]) -> dict[str, torch.Tensor]:
    """The mean of workers' gradients, scaled down to the limit of the norm of everything."""
    mean = {name: sum(one[name] for one in gradients) / np.float32(len(gradients)) for name in SHAPES}
    norm = math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in mean.values()))
    return {name: torch.from_numpy(g) * min(1.0, CLIP / (norm + 1e-6)) for name, g in mean.items()}
