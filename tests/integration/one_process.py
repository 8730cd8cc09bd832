"""What a run should give, computed in the test's own process on whole arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stepd.rules.base import Block, Moment, Rule


class Reference:
    """A rule applied in this process to whole arrays, in the run's own dtype."""

    def __init__(self, rule: Rule, params: Mapping[str, Any]) -> None:
        self.rule = rule
        self.params = {name: np.array(value) for name, value in params.items()}
        self.kept = {
            name: [
                p.flatten() if b.initial == "parameter" else np.full(p.size, b.initial, p.dtype) for b in rule.buffers()
            ]
            for name, p in self.params.items()
        }
        self.steps = dict.fromkeys(self.params, 0)
        self.scalars = dict.fromkeys(self.params, tuple(scalar.initial for scalar in rule.scalars()))

    def step(self, grads: Mapping[str, Any], lr: float | None = None, scale: float = 1.0) -> None:
        for name, grad in grads.items():
            self.steps[name] += 1
            p = self.params[name].reshape(-1)
            block = Block(
                p=p,
                g=(np.asarray(grad).reshape(-1) * p.dtype.type(scale)).astype(p.dtype),
                buffers=tuple(self.kept[name]),
                scratch=tuple(np.empty_like(p) for _ in range(self.rule.scratch)),
            )
            at = Moment(self.steps[name], self.rule.lr if lr is None else lr, self.scalars[name])
            self.rule.update(block, at)
            self.scalars[name] = self.rule.advance(at)
