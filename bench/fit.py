"""A power law through measured points. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class PowerLaw(NamedTuple):
    """y = factor * x ** exponent."""

    factor: float
    exponent: float

    def at(self, x: float) -> float:
        return self.factor * math.pow(x, self.exponent)


def power_law(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """The one with the least squares of logarithms; of points with at least two different x."""
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    mean_x, mean_y = (math.fsum(values) / len(logs) for values in zip(*logs, strict=True))
    spread = math.fsum((x - mean_x) ** 2 for x, _ in logs)
    if not spread:
        raise ValueError("a slope takes points with different x")
    exponent = math.fsum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    return PowerLaw(math.exp(mean_y - exponent * mean_x), exponent)
