"""What a decision to apply makes of the gathered gradient, span by span, in place. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stepd.errors import FailedPrecondition
from stepd.rules import Block, Moment, Reach, Rule
from stepd.rules.base import Array
from stepd.v1 import round_pb2
from stepd_server.kernels.compiled import Kernel, Words
from stepd_server.kernels.updates import Update, Updates, wanted
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


def quiet() -> np.errstate:
    """What updates are made within: NumPy says nothing. It belongs to a thread and a task."""
    return np.errstate(all="ignore")


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
        # Asked for once: NumPy takes as long for each as for a small loop.
        self._begins = [self._begins_of(index) for index in range(len(self._groups))] if self._compiled else []
        # By group and count, of rules that look at nothing else.
        self._moments: dict[tuple[int, int], Moment] = {}

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
        with quiet():
            return self._groups[span.group].rule.measure(self._block(span), self._moment(span))

    def update(self, spans: Sequence[Span]) -> None:
        """Update parameters and buffers, and the run's average. Within `quiet`, which is dear for each block."""
        for span in spans:
            rule, at = self._groups[span.group].rule, self._moment(span)
            update = self._compiled_update(span, at)
            if update is None:
                rule.update(self._block(span), at)
            else:
                p = self._arena.parameters[span.start : span.stop]
                update.kernel(update.constants, [p, self._total(span), *self._buffers(span)])
            if self._averaging.counts:
                (spare,) = self._scratch.rows(1, span.stop - span.start)
                self._averaging.add(span.start, span.stop, spare)

    @property
    def compiles(self) -> bool:
        """Whether spans may be updated by kernels that keep what they overwrite by themselves."""
        return self._compiled is not None and not self._averaging.counts

    def sweep(self, spans: Sequence[tuple[Span, int]]) -> list[tuple[Kernel, Words]] | None:
        """What updates spans without further help, if there are kernels for all of them: see `Kernel.sweep`.

        Args:
            spans: each with the word before anything of it is done.
        """
        swept: list[tuple[Kernel, list[list[int]]]] = []
        for span, first in spans:
            update = self._compiled_update(span, self._moment(span))
            if update is None:
                return None
            if not swept or swept[-1][0] is not update.kernel:
                swept.append((update.kernel, []))
            swept[-1][1].append([first, span.stop - span.start, update.constants_at, *self._addresses(span)])
        return [(kernel, np.array(rows, np.int64)) for kernel, rows in swept]

    def overwritten(self, span: Span) -> list[Array]:
        """What an update of a span overwrites, in the order in which a kernel keeps it."""
        return [self._arena.parameters[span.start : span.stop], *self._buffers(span)]

    def advance(self, spans: Sequence[Span]) -> None:
        """Prepare the scalars of spans that are to be updated: all blocks of a tensor go by those from before."""
        for span in spans:
            group = self._groups[span.group]
            if group.scalars:
                self._arena.prepare_scalars(span.slice, group.rule.advance(self._moment(span)))

    def average(self, start: int, stop: int) -> None:
        """Average what the step has left as it is. Within `quiet`."""
        (scratch,) = self._scratch.rows(1, stop - start)
        self._averaging.add(start, stop, scratch)

    def averaged_alone(self, touched: Bools) -> Iterator[tuple[int, int]]:
        """Stretches of the flat space that the step averages and does not touch."""
        return self._averaging.untouched(touched)

    def _begins_of(self, index: int) -> list[int]:
        """Where parameters, sum and buffers of a group would begin that began where the flat space does."""
        arena, group = self._arena, self._arena.piece.groups[index]
        buffers = [arena.buffers[index][i].ctypes.data for i in self._groups[index].chosen]
        before = group.start * arena.piece.dtype.itemsize
        return [arena.parameters.ctypes.data, arena.accumulator.ctypes.data, *(at - before for at in buffers)]

    def _moment(self, span: Span) -> Moment:
        arena, group = self._arena, self._groups[span.group]
        step = int(arena.updates[span.slice]) + 1
        plain = not group.scalars and group.rule.reach is not Reach.LAYERWISE
        if plain and (known := self._moments.get((span.group, step))):
            return known
        scalars = arena.scalars(span.slice, group.scalars) if group.scalars else ()
        at = Moment(step, group.lr, scalars)
        if plain:
            self._moments[span.group, step] = at
        if group.rule.reach is Reach.LAYERWISE:
            id_ = self.parameter(span)
            at = at._replace(name=arena.piece.spec.parameters[id_].name, norms=self._norms.get(id_, at.norms))
        return at

    def _compiled_update(self, span: Span, at: Moment) -> Update | None:
        """What updates a span by a kernel, if there is one: it gives the bits of the rule."""
        if self._compiled is None:
            return None
        group = self._groups[span.group]
        return self._compiled.find(span.group, group.rule, group.scale, at, span.stop - span.start)

    def _addresses(self, span: Span) -> list[int]:
        """Of its parameters, sum and buffers."""
        return [at + span.start * self._arena.piece.dtype.itemsize for at in self._begins[span.group]]

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
        piece, buffers = self._arena.piece.groups[span.group], self._arena.buffers[span.group]
        chosen = self._groups[span.group].chosen
        if piece.rule.reach is Reach.WHOLE:
            places = piece.places(span)
            return tuple([buffers[i][places[i]] for i in chosen])
        start, stop = span.start - piece.start, span.stop - piece.start
        return tuple([buffers[i][start:stop] for i in chosen])


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
