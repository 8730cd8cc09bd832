"""Norms over shards and groups, clip factors and rates: the numbers of a decision."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepd.definitions import GroupSpec, ParameterSpec, RunSpec
from stepd.policies import Clip, ClipNorm
from stepd.rules import SGD
from stepd.schedules import Cosine, Warmup
from stepd_server.coordinator import decision
from stepd_server.coordinator.vocabulary import GroupRates, Member, Nonfinite, NormPart, Outcome, RoundId, Sums
from stepd_server.exact import ExactSum


def spec(*groups: GroupSpec, clip: float | None = None, norm_type: float = 2.0, **fields: object) -> RunSpec:
    return RunSpec(
        name="run",
        parameters=(ParameterSpec("w", (4,), np.dtype(np.float32)),),
        groups=groups or (GroupSpec(SGD(lr=0.1)),),
        clip=Clip(ClipNorm(clip, norm_type)) if clip is not None else None,
        **fields,
    )


def group(max_norm: float | None = None, norm_type: float = 2.0) -> GroupSpec:
    return GroupSpec(SGD(lr=0.1), clip=Clip(ClipNorm(max_norm, norm_type)) if max_norm is not None else None)


def powers(*terms: float) -> ExactSum:
    total = ExactSum()
    for term in terms:
        total.add(term)
    return total


def sums(*run_norms: NormPart, own: tuple[NormPart | None, ...] | None = None) -> Sums:
    return Sums(run_norms, own or (None,) * len(run_norms))


def test_the_norm_is_of_all_shards_and_groups() -> None:
    two = spec(group(), group(), clip=6.5)
    norms = decision.measure(two, [sums(powers(9), powers(16)), sums(powers(100), powers(44))])
    assert norms.total == 13.0
    assert norms.scale == 6.5 / (13.0 + 1e-6)
    assert norms.group_scales == (1.0, 1.0)


def test_a_norm_below_the_limit_is_left_alone() -> None:
    assert decision.measure(spec(clip=13.0), [sums(powers(9))]).scale == 1.0
    assert decision.measure(spec(), [sums(powers(9))]).scale == 1.0


def test_a_norm_at_the_limit_is_clipped_as_in_torch() -> None:
    assert decision.measure(spec(clip=3.0), [sums(powers(9))]).scale == 3.0 / (3.0 + 1e-6)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 4))
def test_the_bits_do_not_depend_on_the_number_of_shards(squares: list[float], shards: int) -> None:
    expected = math.sqrt(float(sum(map(Fraction, squares))))
    parts = [sums(powers(*squares[shard::shards])) for shard in range(shards)]
    assert decision.measure(spec(), parts).total == expected


@pytest.mark.parametrize(("p", "expected"), [(1.0, 7.0), (2.0, 5.0), (3.0, 91 ** (1 / 3)), (0.5, (2 + 3**0.5) ** 2)])
def test_any_norm(p: float, expected: float) -> None:
    parts = [sums(powers(3.0**p)), sums(powers(4.0**p))]
    assert decision.measure(spec(clip=1.0, norm_type=p), parts).total == pytest.approx(expected, rel=1e-15)


def test_the_largest_element_as_norm() -> None:
    limited = spec(group(2.0, math.inf), group(), clip=1.0, norm_type=math.inf)
    parts = [sums(3.0, 1.0, own=(3.0, None)), sums(4.0, 0.5, own=(4.0, None))]
    norms = decision.measure(limited, parts)
    assert norms.group_scales == (2.0 / (4.0 + 1e-6), 1.0)
    assert norms.total == max(4.0 * norms.group_scales[0], 1.0)


def test_the_runs_limit_acts_on_what_the_groups_limits_have_left() -> None:
    limited = spec(group(5.0), group(), clip=1.0)
    part = sums(powers(100), powers(16), own=(powers(100), None))
    norms = decision.measure(limited, [part])
    scale = 5.0 / (10.0 + 1e-6)
    assert norms.group_scales == (scale, 1.0)
    assert norms.total == pytest.approx(math.sqrt(scale**2 * 100 + 16), rel=1e-15)
    assert norms.scale == 1.0 / (norms.total + 1e-6)


def test_a_groups_norm_may_be_another_than_the_runs() -> None:
    limited = spec(group(2.0, 1.0), clip=1.0)
    norms = decision.measure(limited, [sums(powers(9, 16), own=(powers(3, 4),))])
    assert norms.group_scales == (2.0 / (7.0 + 1e-6),)
    assert norms.total == pytest.approx(5.0 * norms.group_scales[0], rel=1e-15)


@pytest.mark.parametrize(
    ("policy", "outcome"), [("skip", Outcome.SKIPPED), ("quarantine", Outcome.SKIPPED), ("error", Outcome.FAILED)]
)
def test_a_sum_that_overflows_changes_nothing(policy: str, outcome: Outcome) -> None:
    ending = decision.judge(spec(on_nonfinite=policy), [sums(powers(1)), Sums(overflow=True)])
    assert ending.outcome is outcome
    assert ending.norms.total == math.inf
    assert ending.norms.scale == 1.0


def test_a_gradient_whose_square_overflows_is_not_applied() -> None:
    """Rules square it, and an infinite buffer stays infinite; what a clip makes small enough is applied."""
    assert decision.judge(spec(), [sums(powers(1e38))]).outcome is Outcome.APPLIED
    large = decision.judge(spec(), [sums(powers(1e40))])
    assert (large.outcome, large.norms.total) == (Outcome.SKIPPED, 1e20)
    assert decision.judge(spec(clip=1.0), [sums(powers(1e40))]).outcome is Outcome.APPLIED


def test_an_infinite_norm_is_not_applied() -> None:
    too_large = [sums(powers(1.7e308, 1.7e308))]
    assert decision.judge(spec(clip=1.0), too_large).outcome is Outcome.SKIPPED
    assert decision.judge(spec(), too_large).norms.total == math.inf


def test_an_overflow_between_groups_is_an_infinite_norm() -> None:
    limited = spec(group(1.0), group(), group(), clip=1.0)
    part = sums(powers(4), powers(1.7e308), powers(1.7e308), own=(powers(4), None, None))
    assert decision.judge(limited, [part]).outcome is Outcome.SKIPPED


def test_rates_are_those_of_the_committed_step() -> None:
    groups = (GroupSpec(SGD(lr=1.0)), GroupSpec(SGD(lr=0.5), schedule=Warmup(4)))
    run = spec(*groups, schedule=Cosine(total_steps=10))
    assert decision.rates(run, 0) == (1.0, 0.125)
    assert decision.rates(run, 5) == (pytest.approx(0.5), 0.5)
    assert decision.rates(run, 10) == (0.0, 0.5)


def test_only_an_applied_round_is_a_step() -> None:
    member = Member("a", 1, 0)

    def decided(ending: decision.Ending) -> tuple[int, tuple[GroupRates, ...]]:
        made = decision.decide(
            spec(), ending, id=RoundId(4, 1), step=3, members=(member,), nonfinite=(), quarantined=()
        )
        assert made.step_before == 3
        return made.step, made.groups

    assert decided(decision.judge(spec(), [sums(powers(1))])) == (4, (GroupRates(0.1, 1.0),))
    assert decided(decision.not_finite(spec()))[0] == 3
    assert decided(decision.nobody_left(spec()))[0] == 3


def test_each_sender_is_named_once_with_its_first_parameter() -> None:
    a, b = Member("a", 1, 1), Member("b", 1, 0)
    found = [Nonfinite(a, 5), Nonfinite(b, 2), Nonfinite(a, 3)]
    assert decision.merge_nonfinite(found) == (Nonfinite(b, 2), Nonfinite(a, 3))
