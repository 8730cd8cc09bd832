"""Schedules: their curves, and setting a rate in the middle of one."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepd.errors import FailedPrecondition, InvalidArgument
from stepd.schedules import (
    Chained,
    Constant,
    ConstantFactor,
    Cosine,
    CosineAnnealing,
    CosineWarmRestarts,
    Cyclic,
    Exponential,
    FromList,
    InverseSqrt,
    Linear,
    LinearFactor,
    MultiStep,
    OneCycle,
    Polynomial,
    ReduceOnPlateau,
    Schedule,
    Sequential,
    Step,
    Warmup,
    WarmupStableDecay,
    base_for,
)

decays = st.sampled_from([Linear, Cosine])


few = st.integers(1, 300)
fraction = st.floats(0, 1)
lowest_rates = st.floats(0, 0.1)


@st.composite
def warmups(draw: st.DrawFn) -> Schedule:
    """A schedule that warms up and decays."""
    warmup = draw(st.integers(0, 50))
    return draw(decays)(warmup + draw(st.integers(1, 1000)), warmup, draw(lowest_rates))


simple = st.one_of(
    st.just(Constant()),
    st.builds(Warmup, st.integers(0, 50)),
    warmups(),
    st.builds(InverseSqrt, few),
    st.builds(WarmupStableDecay, st.integers(0, 50), few, few, lowest_rates),
    st.builds(Exponential, st.floats(0.9, 1.1)),
    st.builds(Step, few, fraction),
    st.builds(MultiStep, st.lists(few, max_size=4), fraction),
    st.builds(Polynomial, few, st.floats(0.5, 3)),
    st.builds(FromList, st.lists(fraction, min_size=1, max_size=9)),
    st.builds(LinearFactor, st.floats(0.01, 1), fraction, few),
    st.builds(ConstantFactor, fraction, few),
    st.builds(CosineAnnealing, few, lowest_rates),
    st.builds(CosineWarmRestarts, few, st.integers(1, 3), lowest_rates),
    st.builds(OneCycle, lowest_rates, few, fraction, st.sampled_from(["cos", "linear"]), three_phase=st.booleans()),
    st.builds(Cyclic, lowest_rates, lowest_rates, few, mode=st.sampled_from(["triangular", "triangular2"])),
    st.builds(ReduceOnPlateau),
)
parts = simple.filter(lambda schedule: not isinstance(schedule, ReduceOnPlateau))
schedules = st.one_of(
    simple,
    st.builds(lambda a, b, at: Sequential([a, b], [at]), parts, parts, few),
    st.builds(Chained, st.lists(parts, min_size=1, max_size=3)),
)


def rates(schedule: Schedule, steps: int, base: float) -> list[float]:
    return [schedule.rate(step, base) for step in range(steps)]


def test_constant() -> None:
    """The rate is the group's at every step."""
    assert rates(Constant(), 3, 0.1) == [0.1, 0.1, 0.1]


def test_warmup() -> None:
    """The first step has 1/warmup_steps of the rate, step warmup_steps - 1 all of it, and so have those after it."""
    assert rates(Warmup(4), 6, 1.0) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear() -> None:
    """Up to the rate, in a straight line down to min_lr at total_steps, and no further."""
    assert rates(Linear(6, warmup_steps=2, min_lr=1.0), 9, 5.0) == [2.5, 5.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0]


def test_cosine() -> None:
    """Up to the rate, down half a cosine to min_lr at total_steps, and no further."""
    expected = [1.0, 2.0, 2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0]
    assert rates(Cosine(6, warmup_steps=2), 8, 2.0) == pytest.approx(expected, abs=1e-15)


@settings(deadline=None)
@given(total=st.integers(1, 1000), lowest=st.floats(0, 1), base=st.floats(1e-6, 10))
def test_without_warmup_they_are_torchs(total: int, lowest: float, base: float) -> None:
    """Closed forms of CosineAnnealingLR(T_max, eta_min) and LinearLR(1, min_lr / lr, total_iters), step by step."""
    for step in range(0, total, 1 + total // 20):
        cosine = lowest + (base - lowest) * (1 + math.cos(math.pi * step / total)) / 2
        linear = base * (1 + (lowest / base - 1) * min(step, total) / total)
        assert Cosine(total, min_lr=lowest).rate(step, base) == pytest.approx(cosine, rel=1e-12)
        assert Linear(total, min_lr=lowest).rate(step, base) == pytest.approx(linear, rel=1e-12)


@settings(deadline=None)
@given(decay=decays, total=st.integers(2, 500), warmup=st.integers(0, 500), lowest=st.floats(0, 0.1))
def test_decays_begin_and_end_exactly(decay: type[Linear | Cosine], total: int, warmup: int, lowest: float) -> None:
    """The full rate at the end of warm-up, min_lr at total_steps and ever after, never rising in between."""
    warmup = min(warmup, total - 1)
    schedule = decay(total, warmup, lowest)
    assert schedule.rate(warmup, 0.1) == 0.1
    if warmup:
        assert schedule.rate(warmup - 1, 0.1) == 0.1
        assert schedule.rate(0, 0.1) == pytest.approx(0.1 / warmup)
    assert schedule.rate(total, 0.1) == schedule.rate(10 * total, 0.1) == lowest
    falling = [schedule.rate(step, 0.1) for step in range(warmup, total + 1)]
    assert all(b <= a + 1e-15 for a, b in pairwise(falling))


@settings(deadline=None)
@given(schedule=schedules, step=st.integers(0, 1100), base=st.floats(0, 10))
def test_a_rate_is_a_number(schedule: Schedule, step: int, base: float) -> None:
    """At every step, of every schedule: finite, and not below 0 but by rounding.

    Chains go where torch's formulas take them, and of a rate below eta_min a cosine makes one below 0.
    """
    rate = schedule.rate(step, base)
    assert math.isfinite(rate)
    assert rate > -1e-12 or isinstance(schedule, Chained)
    momentum = schedule.momentum(step)
    assert momentum is None or 0 <= momentum < 1


@settings(deadline=None)
@given(schedule=schedules, step=st.integers(0, 1100), rate=st.floats(1e-6, 10))
def test_a_rate_set_in_the_middle_is_the_rate(schedule: Schedule, step: int, rate: float) -> None:
    """The solved base gives the rate at that step; where none would, the error says RATE_FIXED and the rate there."""
    slope, offset = schedule.line(step)
    if slope > 1e-9:
        close = pytest.approx(rate, rel=1e-14, abs=1e-15 * abs(offset))
        assert schedule.rate(step, base_for(schedule, step, rate)) == close
    elif not slope:
        with pytest.raises(FailedPrecondition, match=f"at step {step}: ") as caught:
            base_for(schedule, step, rate)
        assert caught.value.reason == "RATE_FIXED"
        assert caught.value.details["expected"] == schedule.rate(step, 1.0)


def test_a_set_rate_goes_on_as_in_torch() -> None:
    """CosineAnnealingLR, chained: lr * (1 + cos(pi (s + 1) / T)) / (1 + cos(pi s / T)), whatever lr is now."""
    schedule, at, total = Cosine(100), 30, 100
    base = base_for(schedule, at, 0.5)
    chained = 0.5 * (1 + math.cos(math.pi * (at + 1) / total)) / (1 + math.cos(math.pi * at / total))
    assert schedule.rate(at, base) == 0.5
    assert schedule.rate(at + 1, base) == pytest.approx(chained, rel=1e-14)


@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    """Not below 0, not infinite, not NaN: the error names lr and the value."""
    with pytest.raises(InvalidArgument, match=f"lr must be a finite number >= 0, got {rate}"):
        base_for(Constant(), 0, rate)


def test_whole_numbers_stay_whole() -> None:
    """1e3 steps are 1000 steps."""
    assert repr(Cosine(1e3, min_lr=0)) == "Cosine(total_steps=1000, warmup_steps=0, min_lr=0.0)"


def test_inverse_sqrt() -> None:
    """The full rate at the end of warm-up and one step later; half of it after four times as many steps."""
    assert rates(InverseSqrt(2), 9, 1.0)[:3] == [0.5, 1.0, 1.0]
    assert InverseSqrt(2).rate(8, 1.0) == 0.5


def test_warmup_stable_decay() -> None:
    """Up, level, down in a straight line, and no further."""
    expected = [2.5, 5.0, 5.0, 5.0, 5.0, 5.0, 4.0, 3.0, 2.0, 1.0, 1.0]
    assert rates(WarmupStableDecay(2, 3, 4, min_lr=1.0), 11, 5.0) == expected
    assert rates(WarmupStableDecay(0, 0, 0), 2, 5.0) == [0.0, 0.0]


def test_from_list() -> None:
    """Shares of the group's rate, and from its end on the last of them."""
    assert rates(FromList([1, 0.5, 0.25]), 5, 2.0) == [2.0, 1.0, 0.5, 0.5, 0.5]


def test_sequential_counts_each_from_its_own_beginning() -> None:
    """The second schedule's step 0 is the milestone; one within another, too."""
    second = Sequential([Step(2, 0.5), Constant()], [3])
    assert rates(Sequential([Warmup(2), second], [3]), 8, 4.0) == [2.0, 4.0, 4.0, 4.0, 4.0, 2.0, 4.0, 4.0]


def test_chained_multiplies() -> None:
    """Of multiples of the group's rate it is the product."""
    assert rates(Chained([ConstantFactor(0.5, 2), Exponential(0.5)]), 4, 8.0) == [4.0, 2.0, 2.0, 1.0]


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 3000), min_size=1, max_size=20))
def test_chained_does_not_remember_what_was_asked(steps: list[int]) -> None:
    """Any step in any order has the rate that it has by itself: walking there leaves no trace."""
    chain = Chained([CosineAnnealing(700, 0.01), Exponential(0.9999)])
    asked = [chain.rate(step, 0.1) for step in steps]
    cosine, rate, alone = chain.schedules[0], 0.1, [0.1]
    for step in range(1, 3001):
        now, before = cosine.line(step).slope, cosine.line(step - 1).slope
        rate = (rate - 0.01) * now / before + 0.01 if before else rate + (0.1 - 0.01) * now
        rate *= 0.9999
        alone.append(rate)
    assert asked == pytest.approx([alone[step] for step in steps], rel=1e-9)


def test_the_momentum_of_parts() -> None:
    """Sequential has that of the schedule whose turn it is, Chained the last that there is."""
    cycle = OneCycle(1.0, 11)
    assert cycle.momentum(0) == 0.95
    assert Sequential([cycle, Constant()], [4]).momentum(3) == cycle.momentum(3)
    assert Sequential([Constant(), cycle], [4]).momentum(3) is None
    assert Chained([cycle, Constant()]).momentum(3) == cycle.momentum(3)
    assert Constant().momentum(0) is None
    assert OneCycle(1.0, 11, cycle_momentum=False).momentum(0) is None
    assert Cyclic(0.1, 1.0, cycle_momentum=False).momentum(0) is None


def test_after_one_cycle() -> None:
    """Past its steps, where torch raises, the rate is the last and the momentum the highest."""
    cycle = OneCycle(1.0, 10)
    assert cycle.rate(9, 0.0) == pytest.approx(1 / 25 / 1e4)
    assert cycle.rate(11, 0.0) == cycle.rate(10**9, 0.0) == 1 / 25 / 1e4
    assert cycle.momentum(11) == 0.95
    assert min(rates(OneCycle(1.0, 10, anneal_strategy="linear"), 20, 0.0)) == 0.0


@pytest.mark.parametrize("schedule", [Exponential(1e300), Step(1, 10), MultiStep([1] * 400, 10)], ids=repr)
def test_rates_that_explode_are_finite(schedule: Schedule) -> None:
    """As large as a double gets, not an exception in the middle of a run."""
    assert math.isfinite(schedule.line(10**6).slope)


def test_plateau_and_a_rate_set_in_the_middle() -> None:
    """A new base counts from the reductions that follow."""
    schedule = ReduceOnPlateau(patience=0, factor=0.5)
    state = schedule.start()
    for _ in range(3):
        state = schedule.observe(state, 1.0)
    assert (state.reductions, schedule.rate_after(state, 0.8)) == (2, 0.2)
    state = schedule.observe(state._replace(reductions=0), 1.0)
    assert schedule.rate_after(state, 0.3) == 0.15
    assert schedule.rate(1000, 0.3) == 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(0), "Cosine: total_steps must be >= 1, got 0"),
        (lambda: Cosine(1.5), "Cosine: total_steps must be an integer, got 1.5"),
        (lambda: Cosine(float("inf")), "Cosine: total_steps must be an integer, got inf"),
        (lambda: Cosine(10**30), "Cosine: total_steps must be an integer, got 1000"),
        (lambda: Cosine(True), "Cosine: total_steps must be an integer, got True"),
        (lambda: Cosine("9"), "Cosine: total_steps must be an integer, got '9'"),
        (lambda: Cosine(10, 11), r"Cosine: warmup_steps must be >= 0 and <= total_steps \(10\), got 11"),
        (lambda: Linear(10, -1), r"Linear: warmup_steps must be >= 0 and <= total_steps \(10\), got -1"),
        (lambda: Linear(10, min_lr=-1e-3), "Linear: min_lr must be >= 0, got -0.001"),
        (lambda: Linear(10, min_lr=float("nan")), "Linear: min_lr must be a finite number, got nan"),
        (lambda: Warmup(-1), "Warmup: warmup_steps must be >= 0, got -1"),
        (lambda: InverseSqrt(0), "InverseSqrt: warmup_steps must be >= 1, got 0"),
        (lambda: WarmupStableDecay(1, 2, -3), "WarmupStableDecay: decay_steps must be >= 0, got -3"),
        (lambda: Exponential(-0.5), "Exponential: decay_rate must be >= 0, got -0.5"),
        (lambda: Step(0), "Step: step_size must be >= 1, got 0"),
        (lambda: MultiStep([-1]), r"MultiStep: milestones must be a list, each >= 0, got \(-1,\)"),
        (lambda: MultiStep([0.5]), r"MultiStep: milestones must be a list, each an integer, got \[0.5\]"),
        (lambda: Polynomial(0), "Polynomial: total_steps must be >= 1, got 0"),
        (lambda: Polynomial(1, 0), "Polynomial: power must be > 0, got 0.0"),
        (lambda: FromList([]), r"FromList: rates must be at least one number, each >= 0, got \(\)"),
        (lambda: FromList([0.1, -1]), "FromList: rates must be at least one number, each >= 0, got"),
        (lambda: LinearFactor(0), r"LinearFactor: start_factor must be in \(0, 1\], got 0.0"),
        (lambda: ConstantFactor(2), r"ConstantFactor: factor must be in \[0, 1\], got 2.0"),
        (lambda: CosineAnnealing(0), "CosineAnnealing: T_max must be >= 1, got 0"),
        (lambda: CosineWarmRestarts(5, 0), "CosineWarmRestarts: T_mult must be >= 1, got 0"),
        (lambda: OneCycle(1, 10, pct_start=2), r"OneCycle: pct_start must be in \[0, 1\], got 2.0"),
        (lambda: OneCycle(1, 10, anneal_strategy="x"), "OneCycle: anneal_strategy must be one of 'cos', 'linear', got"),
        (lambda: OneCycle(1, 10, max_momentum=1), r"OneCycle: max_momentum must be in \[0, 1\), got 1.0"),
        (lambda: Cyclic(0.1, 1, 0), "Cyclic: step_size_up must be >= 1, got 0"),
        (lambda: Cyclic(0.1, 1, 5, 0), "Cyclic: step_size_down must be >= 1, or None, got 0"),
        (lambda: Sequential([], []), r"Sequential: schedules must be at least one schedule, got \(\)"),
        (lambda: Sequential([Constant(), 5], [1]), "Sequential: schedules must be a list, each Schedule, got"),
        (lambda: Sequential([Constant()], [1]), "Sequential: milestones must be 0 ascending steps > 0, .* got"),
        (lambda: Sequential([Constant()] * 3, [5, 5]), "Sequential: milestones must be 2 ascending steps > 0, .* got"),
        (lambda: Chained([ReduceOnPlateau()]), "Chained: schedules must be without ReduceOnPlateau, got Reduce"),
        (lambda: ReduceOnPlateau(factor=1), r"ReduceOnPlateau: factor must be in \[0, 1\), got 1.0"),
        (lambda: ReduceOnPlateau("low"), "ReduceOnPlateau: mode must be one of 'min', 'max', got 'low'"),
    ],
)
def test_impossible_arguments_are_refused(make: object, message: str) -> None:
    """The error names the schedule, the field, what it must be and what was given."""
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        make()


def test_a_chain_goes_on_from_next_to_nothing() -> None:
    """The share of the rate before has no place in a double; the rate is a number all the same."""
    chain = Chained((FromList((5e-324, 1.0)),))
    assert chain.rate(1, 0.5) == 0.5
