"""Carrying out the decision to apply a step: every span of the gathered gradient, in order, in place. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stepd.limits import BLOCK_ELEMENTS
from stepd.rules import Block, Moment
from stepd.v1 import round_pb2
from stepd_server.shard.arena import Arena
from stepd_server.shard.averaging import Averaging
from stepd_server.shard.plan import Span
from stepd_server.shard.scratch import aligned_empty
from stepd_server.shard.sums import Shaping

# Spans between two pauses: about a chunk of a pull, and under a millisecond of work.
_SPANS_AT_ONCE = 4


def apply_step(
    arena: Arena, spans: Sequence[Span], shaping: Shaping, decision: round_pb2.Decision, averaging: Averaging
) -> Iterator[int]:
    """Update parameters and buffers of all spans, a few at a time.

    Args:
        arena: whose accumulator holds the sum of contributions.
        spans: what the contributions touched, ascending.
        shaping: what makes the sum a gradient.
        decision: the rates and factors.
        averaging: takes in what the spans hold then.

    Yields:
        Up to which element of the flat space parameters are final.
    """
    groups = arena.piece.groups
    rows = 1 + max((g.rule.scratch for g in groups), default=0)
    scratch = aligned_empty(rows, BLOCK_ELEMENTS, arena.piece.dtype)
    # Read from the message once: it is slow to ask for each of thousands of spans.
    factors = [(rates.clip_scale * decision.clip_scale, rates.lr) for rates in decision.groups]
    kept = [len(group.rule.scalars()) for group in groups]
    advanced: dict[int, tuple[float, ...]] = {}
    with np.errstate(all="ignore"):
        for i, span in enumerate(spans):
            group, (scale, lr) = groups[span.group], factors[span.group]
            size = span.stop - span.start
            g = scratch[0, :size]
            shaped = shaping.apply(arena.accumulator[span.start : span.stop], span.group, g)
            np.multiply(shaped, scale, out=g)
            begin, end = span.start - group.start, span.stop - group.start
            block = Block(
                p=arena.parameters[span.start : span.stop],
                g=g,
                buffers=tuple(buffer[begin:end] for buffer in arena.buffers[span.group]),
                scratch=tuple(scratch[1 : 1 + group.rule.scratch, :size]),
            )
            scalars = arena.scalars(span.slice, kept[span.group]) if kept[span.group] else ()
            at = Moment(int(arena.updates[span.slice]) + 1, lr, scalars)
            group.rule.update(block, at)
            averaging.add(span.start, span.stop, g)
            if scalars:
                advanced[span.slice] = group.rule.advance(at)
            if i % _SPANS_AT_ONCE == _SPANS_AT_ONCE - 1:
                yield span.stop
    # All blocks of a slice are updated by the scalars from before the step.
    for index, values in advanced.items():
        arena.set_scalars(index, values)
