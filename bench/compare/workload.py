"""Workload W: 61 float32 tensors, 24.15M parameters, 96.6 MB, clipped to norm 1 and updated by AdamW.

Gradients lie in files that all processes map, so that a machine holds them once and not for each system and worker.
There are two for each rank, taken in turns, one three times as large as the other: then a step without its clip or
with a wrong mean ends elsewhere, for AdamW does not see the size of a gradient that is always the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
Arrays = dict[str, Array]

LAYER: Final = ((512, 1536), (1536,), (512, 512), (512,), (512, 2048), (2048,), (2048, 512), *[(512,)] * 5)
SHAPES: Final = {f"t{i:02d}": shape for i, shape in enumerate(((16384, 512), *LAYER * 5))}
ELEMENTS: Final = sum(int(np.prod(shape)) for shape in SHAPES.values())
BYTES: Final = 4 * ELEMENTS
LR, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.999), 1e-8, 0.01, 1.0
IN_TURNS: Final = 2


@dataclass(frozen=True)
class Files:
    """Where the workload's arrays lie."""

    folder: Path

    def write(self, workers: int) -> None:
        """Write the gradients of so many workers."""
        for rank in range(workers):
            for turn in range(IN_TURNS):
                values = np.random.default_rng((rank, turn)).standard_normal(ELEMENTS, np.float32)
                values *= 3.0**turn
                values.tofile(self._gradient(rank, turn))

    def gradients(self, rank: int) -> list[Arrays]:
        """A worker's, one for each turn. What is written to them stays in this process."""
        return [cut(np.memmap(self._gradient(rank, turn), np.float32, "c")) for turn in range(IN_TURNS)]

    def expected(self, workers: int, steps: int) -> Path:
        """Where the parameters after so many steps are to be found."""
        return self.folder / f"expected-{workers}-{steps}"

    def _gradient(self, rank: int, turn: int) -> Path:
        return self.folder / f"gradient-{rank}-{turn}"


def cut(flat: Array) -> Arrays:
    """The tensors that lie end to end in a flat array."""
    arrays, at = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        arrays[name] = flat[at : at + size].reshape(shape)
        at += size
    return arrays


def parameters() -> Arrays:
    """The initial ones."""
    return cut(np.random.default_rng(7).standard_normal(ELEMENTS, np.float32) * np.float32(0.02))


def deviation(parameters: Arrays, expected: Path, steps: int) -> float:
    """How far off the parameters are, as a part of how far so many steps can take one: about lr each.

    The root of the mean square over a tensor, of that tensor where it is largest. (Of single elements the largest would
    say nothing of gradients that are rounded: where those of two workers cancel, only rounding is left, and AdamW
    makes it as large as any.)
    """
    right = cut(np.memmap(expected, np.float32, "r"))
    most = max(float(np.mean(np.square(parameters[name] - right[name], dtype=np.float64))) for name in SHAPES)
    return math.sqrt(most) / (LR * steps)
