"""What a decision to apply makes of the gathered gradient, span by span, in place. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stepd.errors import FailedPrecondition
from stepd.rules import Block, Moment, Reach, Rule
from stepd.rules.base import Array
from stepd.v1 import round_pb2
from stepd_server.kernels.compiled import Parts
from stepd_server.kernels.updates import Updates, wanted
from stepd_server.shard.arena import Arena
from stepd_server.shard.averaging import Averaging
from stepd_server.shard.plan import Bools, Span
from stepd_server.shard.scratch import Scratch
from stepd_server.shard.sums import Shaping


class _Group(NamedTuple):
    """One group in one step.

    Attributes:
        rule: with the momentum of the step.
        chosen: which of the group's buffers it has: some rules have none without momentum.
        scale: what the gradient is multiplied by.
        lr: rate.
        scalars: how many the rule keeps for a parameter.
    """

    rule: Rule
    chosen: tuple[int, ...]
    scale: float
    lr: float
    scalars: int


class Step:
    """What a decision makes of the gathered gradient, span by span."""

    def __init__(self, arena: Arena, shaping: Shaping, decision: round_pb2.Decision, scratch: Scratch) -> None:
        """
        Args:
            arena: whose accumulator holds the sum of contributions.
            shaping: what makes the sum a gradient.
            decision: the rates and factors, and the norms that layerwise rules ask for.
            scratch: of the run.
        """
        self._arena = arena
        self._shaping = shaping
        self._scratch = scratch
        # Read from the message once: it is slow to ask for each of thousands of spans.
        self._groups = [
            _in_step(group.rule, rates, rates.clip_scale * decision.clip_scale)
            for group, rates in zip(arena.piece.groups, decision.groups, strict=True)
        ]
        self._norms = {norms.parameter: (norms.first, norms.second) for norms in decision.norms}
        self._averaging = Averaging(arena, decision.step)
        piece = arena.piece
        self._compiled = Updates(piece.dtype, shaping) if wanted(piece.size) else None

    @property
    def averages(self) -> bool:
        """Whether the step goes into the run's average."""
        return self._averaging.counts

    def check(self, spans: Sequence[Span]) -> None:
        """Raise FailedPrecondition if norms are missing that updating the spans takes."""
        for span in spans:
            if self._groups[span.group].rule.reach is Reach.LAYERWISE and self.parameter(span) not in self._norms:
                raise FailedPrecondition(f"the decision lacks the norms of parameter {self.parameter(span)}")

    def parameter(self, span: Span) -> int:
        """Id of the first parameter in a span."""
        return self._arena.piece.slices[span.slice].parameter

    def measure(self, span: Span) -> tuple[Array, Array]:
        """What a layerwise rule wants the norms of; good until the next call of anything here."""
        with np.errstate(all="ignore"):
            return self._groups[span.group].rule.measure(self._block(span), self._moment(span))

    def update(self, spans: Sequence[Span]) -> None:
        """Update parameters and buffers, and the run's average; prepare the scalars."""
        # Here and not around all turns: it belongs to a thread and a task.
        with np.errstate(all="ignore"):
            for span in spans:
                rule, at = self._groups[span.group].rule, self._moment(span)
                if not self._run_compiled(span, at):
                    rule.update(self._block(span), at)
                (spare,) = self._scratch.rows(1, span.stop - span.start)
                self._averaging.add(span.start, span.stop, spare)
                self.advance(span, at)

    def update_by_parts(self, span: Span, parts: Parts) -> bool:
        """Do the same by a kernel that keeps what it overwrites by itself; give whether there is one."""
        at = self._moment(span)
        done = not self._averaging.counts and self._run_compiled(span, at, parts)
        if done:
            self.advance(span, at)
        return done

    def overwritten(self, span: Span) -> list[Array]:
        """What a kernel overwrites, in the order in which it keeps it."""
        return [self._arena.parameters[span.start : span.stop], *self._buffers(span)]

    def advance(self, span: Span, at: Moment | None = None) -> None:
        """Prepare the scalars of a span that is updated."""
        at = at or self._moment(span)
        if at.scalars:
            # In use when all is done: all blocks of a tensor go by those from before the step.
            self._arena.prepare_scalars(span.slice, self._groups[span.group].rule.advance(at))

    def average(self, start: int, stop: int) -> None:
        """Average what the step has left as it is."""
        (scratch,) = self._scratch.rows(1, stop - start)
        with np.errstate(all="ignore"):
            self._averaging.add(start, stop, scratch)

    def averaged_alone(self, touched: Bools) -> Iterator[tuple[int, int]]:
        """Stretches of the flat space that the step averages and does not touch."""
        return self._averaging.untouched(touched)

    def _moment(self, span: Span) -> Moment:
        arena, group = self._arena, self._groups[span.group]
        scalars = arena.scalars(span.slice, group.scalars) if group.scalars else ()
        at = Moment(int(arena.updates[span.slice]) + 1, group.lr, scalars)
        if group.rule.reach is Reach.LAYERWISE:
            id_ = self.parameter(span)
            at = at._replace(name=arena.piece.spec.parameters[id_].name, norms=self._norms.get(id_, at.norms))
        return at

    def _run_compiled(self, span: Span, at: Moment, parts: Parts | None = None) -> bool:
        """Update a span by a kernel, if there is one: it gives the bits of the rule."""
        if self._compiled is None:
            return False
        rule, _, scale, *_ = self._groups[span.group]
        p = self._arena.parameters[span.start : span.stop]
        return self._compiled.run(span.group, rule, scale, at, p, self._total(span), self._buffers(span), parts)

    def _block(self, span: Span) -> Block:
        rule, _, scale, *_ = self._groups[span.group]
        piece = self._arena.piece.groups[span.group]
        g, *scratch = self._scratch.rows(1 + rule.scratch, span.stop - span.start)
        self._shaping.gradient(self._total(span), span.group, scale, g)
        return Block(
            p=self._arena.parameters[span.start : span.stop],
            g=g,
            buffers=self._buffers(span),
            scratch=tuple(scratch),
            shape=piece.shapes[span.slice - piece.first] if rule.reach is Reach.WHOLE else (),
        )

    def _total(self, span: Span) -> Array:
        """The sum of the contributions."""
        return self._arena.accumulator[span.start : span.stop]

    def _buffers(self, span: Span) -> tuple[Array, ...]:
        places, buffers = self._arena.piece.groups[span.group].places(span), self._arena.buffers[span.group]
        return tuple(buffers[i][places[i]] for i in self._groups[span.group].chosen)


def _in_step(rule: Rule, rates: round_pb2.GroupRates, scale: float) -> _Group:
    kept = {buffer.name: index for index, buffer in enumerate(rule.buffers())}
    if rates.HasField("momentum"):
        rule = rule.cycled(rates.momentum)
    chosen = tuple(kept[buffer.name] for buffer in rule.buffers())
    return _Group(rule, chosen, scale, rates.lr, len(rule.scalars()))


def without_norms(decision: round_pb2.Decision) -> round_pb2.Decision:
    """The decision without what only shards need, which may be hundreds of kilobytes."""
    told = round_pb2.Decision()
    told.CopyFrom(decision)
    told.ClearField("norms")
    return told
