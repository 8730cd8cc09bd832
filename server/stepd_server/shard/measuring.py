"""The norms of whole tensors that layerwise rules ask for, as far as the tensors lie on this shard. No I/O.

Every block gives one double, as for the norm of the gradient, and the doubles are added exactly: the norms have the
same bits on however many shards a tensor lies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules import Reach
from stepd.rules.base import Array
from stepd.v1 import shard_control_pb2
from stepd_server.exact import ExactSum
from stepd_server.shard.applying import Step
from stepd_server.shard.plan import Piece, Span
from stepd_server.shard.scratch import aligned_empty

# Sums in one message: each may have 500 bytes.
_SUMS_AT_ONCE: Final = 1000
_SPANS_AT_ONCE: Final = 4


class Measuring:
    """One pass over the blocks of layerwise rules."""

    def __init__(self, piece: Piece, step: Step, spans: Sequence[Span]) -> None:
        self._step = step
        self._spans = [s for s in spans if piece.groups[s.group].rule.reach is Reach.LAYERWISE]
        self._terms: dict[int, tuple[list[float], list[float]]] = {}
        (self._wide,) = aligned_empty(1, BLOCK_ELEMENTS, np.dtype(np.float64))

    def turns(self) -> Iterator[None]:
        """Measure, a few spans between two pauses. Nothing that others may change meanwhile is kept over a pause."""
        for i, span in enumerate(self._spans):
            terms = self._terms.setdefault(self._step.parameter(span), ([], []))
            for values, into in zip(self._step.measure(span), terms, strict=True):
                into.append(self._squares(values))
            if i % _SPANS_AT_ONCE == _SPANS_AT_ONCE - 1:
                yield

    def _squares(self, values: Array) -> float:
        """The sum of a block's squares; infinite if an element is not finite."""
        wide = self._wide[: values.size]
        with np.errstate(all="ignore"):
            np.copyto(wide, values)
            np.multiply(wide, wide, out=wide)
            total = float(np.add.reduce(wide))
        return total if math.isfinite(total) else math.inf

    def messages(self) -> Iterator[shard_control_pb2.MeasureRoundResponse]:
        """What has been found."""
        found = list(self._terms.items())
        for at in range(0, len(found), _SUMS_AT_ONCE):
            yield shard_control_pb2.MeasureRoundResponse(
                sums=[
                    shard_control_pb2.TensorSums(
                        parameter=id_, first=_sum(first).to_proto(), second=_sum(second).to_proto()
                    )
                    for id_, (first, second) in found[at : at + _SUMS_AT_ONCE]
                ]
            )


def _sum(terms: list[float]) -> ExactSum:
    total = ExactSum()
    for term in terms:
        total.add(term)
    return total
