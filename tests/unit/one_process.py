"""What shards do with blocks, done in a few lines without them: cases trained in one process."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from stepd import specs
from stepd.parameters import define_run
from stepd.policies import Clip
from stepd.rules import Block, Moment, Reach, Rule
from tests.reference.as_stepd import create_run_arguments
from tests.reference.cases import STEPS, Case, Reference, gradient


class Tensor:
    """One parameter with what its rule keeps for it."""

    def __init__(self, rule: Rule, initial: np.ndarray, name: str = "w") -> None:
        self.rule = rule
        self.name = name
        self.shape = np.shape(initial)
        self.p = np.array(initial).reshape(-1)
        self.buffers = [
            self.p.copy()
            if buffer.initial == "parameter"
            else np.full(buffer.size(self.shape), buffer.initial, self.p.dtype)
            for buffer in rule.buffers()
        ]
        self.scalars = tuple(scalar.initial for scalar in rule.scalars())
        self.updates = 0
        rule.check_parameter(name, self.shape)

    def update(self, g: np.ndarray, lr: float, cuts: list[int]) -> None:
        """One step, the tensor cut into blocks at these places."""
        at = Moment(self.updates + 1, lr, self.scalars, self.name)
        edges = [0, self.p.size] if self.rule.reach is Reach.WHOLE else [0, *cuts, self.p.size]
        pieces = [slice(*edge) for edge in pairwise(edges)]
        if self.rule.reach is Reach.LAYERWISE:
            at = at._replace(norms=self._norms(g, pieces, at))
        for piece in pieces:
            self.rule.update(self.block(g, piece), at)
        self.updates += 1
        self.scalars = self.rule.advance(at)

    def _norms(self, g: np.ndarray, pieces: list[slice], at: Moment) -> tuple[float, float]:
        before = [array.copy() for array in (self.p, *self.buffers)]
        squares: tuple[list[float], list[float]] = ([], [])
        for piece in pieces:
            for each, values in zip(squares, self.rule.measure(self.block(g, piece), at), strict=True):
                each.extend(np.square(values, dtype=np.float64).tolist())
        for array, was in zip((self.p, *self.buffers), before, strict=True):
            assert array.tobytes() == was.tobytes(), "measuring changes nothing"
        return math.sqrt(math.fsum(squares[0])), math.sqrt(math.fsum(squares[1]))

    def block(self, g: np.ndarray, piece: slice) -> Block:
        size = piece.stop - piece.start
        scratch = tuple(np.full(size, np.nan, self.p.dtype) for _ in range(self.rule.scratch))
        if self.rule.reach is Reach.WHOLE:
            return Block(self.p, g.copy(), tuple(self.buffers), scratch, self.shape)
        return Block(self.p[piece], g[piece].copy(), tuple(b[piece] for b in self.buffers), scratch)

    def average(self) -> np.ndarray:
        """The weights for evaluation."""
        out = np.empty_like(self.p)
        self.rule.average(self.block(out, slice(0, self.p.size)), self.updates, out)
        return out


def train(case: Case) -> tuple[dict[str, Tensor], Reference]:
    """The case from its first to its last step: tensors at the end, and rates and norms of every step."""
    message, initial = define_run("run", **create_run_arguments(case))
    run = specs.run_from_proto(message)
    tensors = {
        parameter.name: Tensor(
            run.groups[parameter.group].optimizer, np.reshape(value, parameter.shape), parameter.name
        )
        for parameter, value in zip(run.parameters, initial, strict=True)
    }
    clip = run.clip or Clip(norm=1e300)
    rates, norms = [], []
    for step in range(STEPS):
        values = {p.name: tensors[p.name].p.reshape(p.shape) for p in run.parameters}
        grads = {name: np.array(grad).reshape(-1) for name, grad in gradient(case, step, values).items()}
        if clip.value:
            for grad in grads.values():
                np.clip(grad, -clip.value.max_value, clip.value.max_value, out=grad)
        everything = np.concatenate(list(grads.values())).astype(np.float64)
        norms.append(np.linalg.norm(everything, clip.norm.norm_type if clip.norm else 2))
        rates.append([run.schedule_of(g).rate(step, group.optimizer.lr) for g, group in enumerate(run.groups)])
        for parameter in run.parameters:
            if parameter.name in grads:
                grad = grads[parameter.name]
                grad *= clip.norm.scale(norms[-1]) if clip.norm else 1.0
                tensors[parameter.name].update(grad, rates[-1][parameter.group], cuts=[grad.size // 3])
    return tensors, Reference({}, np.array(rates), np.array(norms))
