"""What becomes of a gathered round: norms over all shards, clip factors, rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from stepd.definitions import RunSpec
from stepd.policies import ClipNorm
from stepd.rules import Reach
from stepd_server.coordinator.policy import Policy
from stepd_server.coordinator.vocabulary import (
    Decision,
    GroupRates,
    Measures,
    Member,
    Nonfinite,
    NormPart,
    Outcome,
    RoundId,
    Selected,
    Sums,
    TensorNorms,
)
from stepd_server.exact import ExactSum

_NORM_TYPE: Final = 2.0


@dataclass(frozen=True)
class Norms:
    """The size of the aggregated gradient and what clipping makes of it.

    Attributes:
        group_scales: by group, the factor of its own clip.
        total: of the whole run, after the groups' own clips.
        scale: the factor of the run's clip.
    """

    group_scales: tuple[float, ...]
    total: float
    scale: float


@dataclass(frozen=True)
class Ending:
    """A decision but for its names: how the round ends and with which norms."""

    outcome: Outcome
    norms: Norms


def norm_type(limit: ClipNorm | None) -> float:
    return limit.norm_type if limit else _NORM_TYPE


def what_is_summed(spec: RunSpec, policy: Policy) -> tuple[object, ...]:
    """What shards must know to gather: their sums are of no use if it changes."""
    clip = spec.clip
    return (
        clip.value if clip else None,
        norm_type(clip.norm if clip else None),
        policy.in_turn,
        policy.reduce,
        policy.deterministic,
    )


def judge(spec: RunSpec, sums: Sequence[Sums]) -> Ending:
    """How a round ends whose contributions are all finite.

    Where their sum is not, or a norm by which to clip is not, nothing changes under every policy but "error", and
    nobody is to blame: each of them was finite.
    """
    failed = Outcome.FAILED if spec.on_nonfinite == "error" else Outcome.SKIPPED
    if any(part.overflow for part in sums):
        return Ending(failed, _untouched(spec, math.inf))
    norms = measure(spec, sums)
    # Rules square the gradient: past this, what is finite would make buffers infinite for good.
    if norms.total * norms.scale > math.sqrt(float(np.finfo(spec.master).max)):
        return Ending(failed, _untouched(spec, norms.total))
    # A factor of 0 is what an infinite norm leads to: applying it would decay weights and momentum for nothing.
    if 0.0 in (norms.scale, *norms.group_scales):
        return Ending(failed, _untouched(spec, math.inf))
    return Ending(Outcome.APPLIED, norms)


def measure(spec: RunSpec, sums: Sequence[Sums]) -> Norms:
    """Norms and factors from all shards' sums; the same bits for any number of shards.

    A group's own clip comes first, as if torch's clip_grad_norm_ had been called for each group and then for all.
    """
    groups = range(len(spec.groups))
    scales = tuple(_scale(_own_limit(spec, g), (part.group_norms[g] for part in sums)) for g in groups)
    limit = spec.clip.norm if spec.clip else None
    total = _scaled_norm([[part.run_norms[g] for part in sums] for g in groups], scales, norm_type(limit))
    return Norms(scales, total, limit.scale(total) if limit else 1.0)


def _own_limit(spec: RunSpec, group: int) -> ClipNorm | None:
    clip = spec.groups[group].clip
    return clip.norm if clip else None


def _scale(limit: ClipNorm | None, parts: Iterable[NormPart | None]) -> float:
    if limit is None:
        return 1.0
    return limit.scale(_root(_add([part for part in parts if part is not None]), limit.norm_type))


def _scaled_norm(groups: Sequence[Sequence[NormPart]], scales: Sequence[float], p: float) -> float:
    """The norm over groups whose gradients have been multiplied by `scales`."""
    if all(scale == 1.0 for scale in scales):
        # One rounding only, so that dividing a run into groups does not change the bits.
        return _root(_add([part for group in groups for part in group]), p)
    if math.isinf(p):
        return max((scale * _add(group) for group, scale in zip(groups, scales, strict=True)), default=0.0)
    try:
        return _root(math.fsum(scale**p * _add(group) for group, scale in zip(groups, scales, strict=True)), p)
    except OverflowError:
        return math.inf


def _add(parts: Sequence[NormPart]) -> float:
    """The sum of powers, or the largest of maxima."""
    sums = [part for part in parts if isinstance(part, ExactSum)]
    maxima = [part for part in parts if not isinstance(part, ExactSum)]
    return max(maxima) if maxima else ExactSum.of(sums).total()


def _root(total: float, p: float) -> float:
    if p == 2.0:
        return math.sqrt(total)  # correctly rounded, which a power is not
    try:
        return total if math.isinf(p) else total ** (1 / p)
    except OverflowError:
        return math.inf


def _untouched(spec: RunSpec, norm: float) -> Norms:
    return Norms((1.0,) * len(spec.groups), norm, 1.0)


def nobody_left(spec: RunSpec) -> Ending:
    """Of a round without contributors: nothing changes, and the run goes on."""
    return Ending(Outcome.SKIPPED, _untouched(spec, 0.0))


def not_finite(spec: RunSpec) -> Ending:
    """Of a round with contributions that are not finite, unless they are left out."""
    failed = Outcome.FAILED if spec.on_nonfinite == "error" else Outcome.SKIPPED
    return Ending(failed, _untouched(spec, math.nan))


def merge_nonfinite(found: Iterable[Nonfinite]) -> tuple[Nonfinite, ...]:
    """One for each member, with the first of its parameters; by rank."""
    first: dict[Member, int] = {}
    for one in found:
        first[one.member] = min(one.parameter, first.get(one.member, one.parameter))
    ordered = sorted(first.items(), key=lambda item: (item[0].rank, item[0].worker))
    return tuple(Nonfinite(member, parameter) for member, parameter in ordered)


def rates(spec: RunSpec, step: int) -> tuple[float, ...]:
    """By group: the rate of the step that is taken when `step` steps have been applied."""
    return tuple(spec.schedule_of(g).rate(step, group.optimizer.lr) for g, group in enumerate(spec.groups))


def momenta(spec: RunSpec, step: int) -> tuple[float | None, ...]:
    """By group: what its schedule puts in the place of its momentum. None: nothing."""
    return tuple(spec.schedule_of(group).momentum(step) for group in range(len(spec.groups)))


def lacks_norms(spec: RunSpec, decision: Decision) -> bool:
    """Whether shards must measure tensors before they can carry the decision out."""
    layerwise = any(group.optimizer.reach is Reach.LAYERWISE for group in spec.groups)
    return layerwise and decision.outcome is Outcome.APPLIED


def complete(spec: RunSpec, draft: Decision, measures: Iterable[Measures]) -> Decision:
    """The decision with the norms of tensors from all shards' measures; the same bits for any number of shards.

    Norms that are not finite would make NaNs of parameters: then nothing changes, as where the gradient is too large.
    """
    sums: dict[int, tuple[ExactSum, ExactSum]] = {}
    for part in measures:
        for parameter, given in part.items():
            for total, one in zip(sums.setdefault(parameter, (ExactSum(), ExactSum())), given, strict=True):
                total.merge(one)
    norms = tuple(
        TensorNorms(parameter, math.sqrt(first.total()), math.sqrt(second.total()))
        for parameter, (first, second) in sorted(sums.items())
    )
    if all(math.isfinite(norm.first) and math.isfinite(norm.second) for norm in norms):
        return replace(draft, norms=norms)
    untouched = _untouched(spec, math.inf)
    failed = Outcome.FAILED if spec.on_nonfinite == "error" else Outcome.SKIPPED
    return replace(
        draft,
        outcome=failed,
        step=draft.step_before,
        groups=tuple(replace(group, clip_scale=1.0) for group in draft.groups),
        grad_norm=untouched.total,
        clip_scale=untouched.scale,
    )


def decide(
    spec: RunSpec,
    ending: Ending,
    *,
    id: RoundId,
    step: int,
    members: tuple[Member, ...],
    nonfinite: tuple[Nonfinite, ...],
    quarantined: tuple[Member, ...],
    counted: tuple[Selected, ...] = (),
    late: tuple[Member, ...] = (),
) -> Decision:
    """The decision of a round that was gathered when `step` steps had been applied."""
    norms = ending.norms
    groups = zip(rates(spec, step), norms.group_scales, momenta(spec, step), strict=True)
    return Decision(
        id=id,
        outcome=ending.outcome,
        step=step + 1 if ending.outcome is Outcome.APPLIED else step,
        groups=tuple(GroupRates(lr, scale, momentum) for lr, scale, momentum in groups),
        grad_norm=norms.total,
        clip_scale=norms.scale,
        members=members,
        nonfinite=nonfinite,
        quarantined=quarantined,
        counted=counted,
        late=late,
    )
