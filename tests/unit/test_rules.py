"""Rules against the numbers of torch and of others, without a server."""

from __future__ import annotations

import dataclasses
import inspect
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepd import rules
from stepd.errors import InvalidArgument
from stepd.rules import (
    ASGD,
    LAMB,
    LARS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lion,
    Moment,
    Muon,
    NAdam,
    RAdam,
    Reach,
    RMSprop,
    Rprop,
    Rule,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    Yogi,
)
from tests.reference import papers
from tests.reference.cases import CASES, TOLERANCE, Case, error, other_final, reference
from tests.reference.rule_cases import OTHER_CASES, TORCH_CASES
from tests.unit.one_process import Tensor, train

EVERY_CASE = CASES | TORCH_CASES | OTHER_CASES

RULES = [
    SGD(0.1),
    SGD(0.1, momentum=0.9, dampening=0.5, weight_decay=0.1, maximize=True),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.1, weight_decay=0.1, maximize=True),
    Adam(0.1, amsgrad=True),
    AdamW(0.1),
    Adamax(0.1, weight_decay=0.1, maximize=True),
    NAdam(0.1, weight_decay=0.1, maximize=True),
    NAdam(0.1, weight_decay=0.1, decoupled_weight_decay=True),
    RAdam(0.1, betas=(0.9, 0.5), weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    RMSprop(0.1, weight_decay=0.1, momentum=0.9, centered=True, maximize=True),
    RMSprop(0.1),
    Adagrad(0.1, lr_decay=0.1, weight_decay=0.1, maximize=True),
    Adadelta(0.1, weight_decay=0.1, maximize=True),
    ASGD(0.1, t0=0, weight_decay=0.1, maximize=True),
    Rprop(0.1, maximize=True),
    Lion(0.1, weight_decay=0.1, maximize=True),
    Yogi(0.1, weight_decay=0.1, maximize=True),
    LARS(0.1, weight_decay=0.1, nesterov=True, maximize=True),
    LARS(0.1, momentum=0, exclude=("w",), variant="plain"),
    LAMB(0.1, maximize=True),
    LAMB(0.1, weight_decay=0, exclude=("w",)),
    ScheduleFreeSGD(0.1, weight_decay=0.1, warmup_steps=3),
    ScheduleFreeAdamW(0.1, weight_decay=0.1),
    Muon(0.1),
    Muon(0.1, nesterov=False, adjust_lr_fn="match_rms_adamw"),
    Adafactor(0.1, weight_decay=0.1, maximize=True),
]
# Of a thousand elements; the last is a matrix for Muon's sake.
SHAPE = (40, 25)


@pytest.mark.parametrize("case", EVERY_CASE.values(), ids=str)
def test_a_hundred_steps_end_where_theirs_end(case: Case) -> None:
    """Parameters, rates and norms are torch's, or the paper's: within 1e-6 in float32 and 1e-12 in float64."""
    tensors, seen = train(case)
    final = {name: tensor.p for name, tensor in tensors.items()}
    expected = reference(case)
    assert error(case, final) <= TOLERANCE[case.dtype]
    for library in ("optax", "schedulefree"):
        if theirs := other_final(case, library):
            assert error(case, final, theirs) <= TOLERANCE[case.dtype], library
    if theirs := other_final(case, "average"):
        averages = {name: tensor.average() for name, tensor in tensors.items()}
        assert error(case, averages, theirs) <= TOLERANCE[case.dtype]
    np.testing.assert_allclose(seen.lr, expected.lr, rtol=1e-12)
    np.testing.assert_allclose(seen.norm, expected.norm, rtol=TOLERANCE[case.dtype])


def test_the_comparison_with_torch_can_fail() -> None:
    """An error of twice the tolerance in one element is seen."""
    case = CASES["sgd-float64"]
    tensors, _ = train(case)
    final = {name: tensor.p for name, tensor in tensors.items()}
    final["bias"][3] += 2e-12 * np.abs(final["bias"]).max()
    assert error(case, final) > TOLERANCE["float64"]


@pytest.mark.parametrize("case", OTHER_CASES.values(), ids=str)
def test_the_papers_numbers_are_those_that_are_stored(case: Case) -> None:
    """What is stored can be made again here, since it needs nothing but NumPy."""
    final, _, rates, norms = papers.train(case)
    assert error(case, final) <= 1e-13
    np.testing.assert_allclose(rates, reference(case).lr, rtol=1e-13)
    np.testing.assert_allclose(norms, reference(case).norm, rtol=1e-13)


def test_every_rule_is_tested() -> None:
    """A rule that is exported has cases with known numbers, and stands in the list of the tests below."""
    exported = {name for name, rule in vars(rules).items() if inspect.isclass(rule) and issubclass(rule, Rule)}
    assert exported - {"Rule"} == {case.rule for case in EVERY_CASE.values()} == {type(rule).__name__ for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 1000), max_size=6).map(sorted))
def test_cuts_do_not_change_a_bit(rule: Rule, dtype: type, cuts: list[int]) -> None:
    """A tensor that is updated in pieces, cut anywhere, gets the bits of one that is updated whole."""
    random = np.random.default_rng(1)
    initial = random.standard_normal(SHAPE).astype(dtype)
    whole, cut = Tensor(rule, initial), Tensor(rule, initial)
    for _ in range(7):
        g = random.standard_normal(1000).astype(dtype)
        whole.update(g, rule.lr, [])
        cut.update(g, rule.lr, cuts)
    assert cut.p.tobytes() == whole.p.tobytes()
    assert [b.tobytes() for b in cut.buffers] == [b.tobytes() for b in whole.buffers]
    assert cut.average().tobytes() == whole.average().tobytes()
    assert np.isfinite(whole.p).all()
    assert (whole.p != initial.reshape(-1)).all()


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_update_takes_no_memory(rule: Rule, dtype: type) -> None:
    """Everything happens in the arrays that are given: no temporary of even a tenth of a block, dtypes unchanged."""
    # Sums over whole tensors go through a buffer of NumPy's own, of 64 KiB whatever their size.
    side = 1024 if rule.reach is Reach.WHOLE else 256
    tensor = Tensor(rule, np.full((side, side), 0.5, dtype))
    g = np.full(tensor.p.size, 0.5, dtype)
    block, out = tensor.block(g, slice(0, g.size)), np.empty_like(g)
    at = Moment(1, 0.1, tensor.scalars, "w", (3.0, 4.0))

    def everything() -> None:
        if rule.reach is Reach.LAYERWISE:
            rule.measure(block, at)
        rule.update(block, at)
        rule.average(block, 1, out)

    everything()
    peaks = []
    tracemalloc.start()
    try:
        # The least of some: what other threads of this process take meanwhile counts as well, but not each time.
        for _ in range(5):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            everything()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert min(peaks) < tensor.p.nbytes / 10
    assert {array.dtype for array in (block.p, block.g, *block.buffers, *block.scratch, out)} == {np.dtype(dtype)}


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_update_of_nothing(rule: Rule) -> None:
    """A block without elements is no special case."""
    tensor = Tensor(rule, np.zeros((0, 3), np.float32))
    if rule.reach is not Reach.WHOLE:
        tensor.update(np.zeros(0, np.float32), 0.1, [])
    assert tensor.p.size == 0


def test_torchs_names_order_and_defaults() -> None:
    """Positional arguments and defaults are those of torch.optim."""
    assert SGD(1, 2, 3, 4) == SGD(lr=1, momentum=2, dampening=3, weight_decay=4)
    assert SGD() == SGD(lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False)
    assert Adam(1, (0.5, 0.5), 1, 1, True) == Adam(lr=1, betas=(0.5, 0.5), eps=1, weight_decay=1, amsgrad=True)
    assert Adam() == Adam(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=False)
    assert dataclasses.asdict(AdamW()) == dataclasses.asdict(Adam()) | {"weight_decay": 0.01}
    assert Adamax() == Adamax(2e-3, (0.9, 0.999), 1e-8, 0, False)
    assert NAdam() == NAdam(2e-3, (0.9, 0.999), 1e-8, 0, 4e-3, False, False)
    assert RAdam() == RAdam(1e-3, (0.9, 0.999), 1e-8, 0, False, False)
    assert RMSprop() == RMSprop(1e-2, 0.99, 1e-8, 0, 0, False, False)
    assert Adagrad() == Adagrad(1e-2, 0, 0, 0, 1e-10, False)
    assert Adadelta() == Adadelta(1.0, 0.9, 1e-6, 0, False)
    assert ASGD() == ASGD(1e-2, 1e-4, 0.75, 1e6, 0, False)
    assert Rprop() == Rprop(1e-2, (0.5, 1.2), (1e-6, 50), False)
    assert Adafactor() == Adafactor(1e-2, -0.8, (None, 1e-3), 1.0, 0, False)
    assert Muon() == Muon(1e-3, 0.1, 0.95, True, (3.4445, -4.7750, 2.0315), 1e-7, 5, None)


def test_values_take_the_types_of_their_fields() -> None:
    """Integers and NumPy's numbers become floats, a list a tuple: equal rules are equal, and print the same."""
    rule = Adam(lr=np.float64(1), betas=[0, np.float32(0.5)], amsgrad=np.bool_(True))
    assert repr(rule) == "Adam(lr=1.0, betas=(0.0, 0.5), eps=1e-08, weight_decay=0.0, amsgrad=True, maximize=False)"
    assert hash(rule) == hash(Adam(lr=1.0, betas=(0.0, 0.5), amsgrad=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=-1), "SGD: lr must be >= 0, got -1.0"),
        (lambda: SGD(lr=float("nan")), "SGD: lr must be a finite number, got nan"),
        (lambda: SGD(lr=float("inf")), "SGD: lr must be a finite number, got inf"),
        (lambda: SGD(lr=10**400), "SGD: lr must be a finite number, got 1000"),
        (lambda: SGD(lr=True), "SGD: lr must be a finite number, got True"),
        (lambda: SGD(lr="0.1"), "SGD: lr must be a finite number, got '0.1'"),
        (lambda: SGD(lr=None), "SGD: lr must be a finite number, got None"),
        (lambda: SGD(momentum=-0.1), "SGD: momentum must be >= 0, got -0.1"),
        (lambda: SGD(weight_decay=-0.1), "SGD: weight_decay must be >= 0, got -0.1"),
        (lambda: SGD(nesterov=True), "SGD: momentum must be > 0 with nesterov, got 0.0"),
        (lambda: SGD(momentum=0.9, dampening=0.1, nesterov=True), "SGD: dampening must be 0 with nesterov, got 0.1"),
        (lambda: SGD(nesterov=1), "SGD: nesterov must be True or False, got 1"),
        (lambda: Adam(betas=0.9), "Adam: betas must be 2 values, got 0.9"),
        (lambda: Adam(betas=(0.9,)), r"Adam: betas must be 2 values, got \(0.9,\)"),
        (lambda: Adam(betas=(0.9, "x")), "Adam: betas must be 2 values, each a finite number, got"),
        (lambda: Adam(betas=(1, 0.9)), r"Adam: betas\[0\] must be in \[0, 1\), got 1.0"),
        (lambda: AdamW(betas=(0.9, 1)), r"AdamW: betas\[1\] must be in \[0, 1\), got 1.0"),
        (lambda: AdamW(eps=-1e-8), "AdamW: eps must be >= 0, got -1e-08"),
        (lambda: AdamW(weight_decay=-1), "AdamW: weight_decay must be >= 0, got -1.0"),
        (lambda: Adamax(betas=(0.9, 1)), r"Adamax: betas\[1\] must be in \[0, 1\), got 1.0"),
        (lambda: NAdam(momentum_decay=-1), "NAdam: momentum_decay must be >= 0, got -1.0"),
        (lambda: RAdam(eps=-1), "RAdam: eps must be >= 0, got -1.0"),
        (lambda: RMSprop(alpha=-1), "RMSprop: alpha must be >= 0, got -1.0"),
        (lambda: RMSprop(centered="yes"), "RMSprop: centered must be True or False, got 'yes'"),
        (lambda: Adagrad(initial_accumulator_value=-1), "Adagrad: initial_accumulator_value must be >= 0, got -1.0"),
        (lambda: Adagrad(lr_decay=-1), "Adagrad: lr_decay must be >= 0, got -1.0"),
        (lambda: Adadelta(rho=1.1), r"Adadelta: rho must be in \[0, 1\], got 1.1"),
        (lambda: ASGD(lambd=-1), "ASGD: lambd must be >= 0, got -1.0"),
        (lambda: Rprop(etas=(1, 1.2)), r"Rprop: etas\[0\] must be in \(0, 1\), got 1.0"),
        (lambda: Rprop(etas=(0.5, 1)), r"Rprop: etas\[1\] must be > 1, got 1.0"),
        (lambda: Rprop(step_sizes=(2, 1)), "Rprop: step_sizes must be 0 <= the smallest <= the largest, got"),
        (lambda: Lion(betas=(-0.1, 0.9)), r"Lion: betas\[0\] must be in \[0, 1\), got -0.1"),
        (lambda: Yogi(initial_accumulator_value=-1), "Yogi: initial_accumulator_value must be >= 0, got -1.0"),
        (lambda: LARS(1, trust_coefficient=0), "LARS: trust_coefficient must be > 0, got 0.0"),
        (lambda: LARS(1, exclude="*bias*"), r"LARS: exclude must be a list, got '\*bias\*'"),
        (lambda: LARS(1, exclude=(1,)), r"LARS: exclude must be a list, each a string, got \(1,\)"),
        (lambda: LARS(1, variant="other"), "LARS: variant must be one of 'paper', 'plain', got 'other'"),
        (lambda: LARS(1, momentum=0, nesterov=True), "LARS: momentum must be > 0 with nesterov, got 0.0"),
        (lambda: LAMB(weight_decay=-1), "LAMB: weight_decay must be >= 0, got -1.0"),
        (lambda: ScheduleFreeSGD(momentum=0), r"ScheduleFreeSGD: momentum must be in \(0, 1\), got 0.0"),
        (lambda: ScheduleFreeAdamW(betas=(0, 0.9)), r"ScheduleFreeAdamW: betas\[0\] must be in \(0, 1\), got 0.0"),
        (lambda: ScheduleFreeSGD(warmup_steps=0.5), "ScheduleFreeSGD: warmup_steps must be an integer, got 0.5"),
        (lambda: ScheduleFreeAdamW(weight_lr_power=-1), "ScheduleFreeAdamW: weight_lr_power must be >= 0, got -1.0"),
        (lambda: Muon(ns_steps=100), "Muon: ns_steps must be from 0 to 99, got 100"),
        (lambda: Muon(ns_coefficients=(1, 2)), r"Muon: ns_coefficients must be 3 values, got \(1, 2\)"),
        (
            lambda: Muon(adjust_lr_fn="x"),
            "Muon: adjust_lr_fn must be one of 'original', 'match_rms_adamw' or None, got 'x'",
        ),
        (lambda: Adafactor(beta2_decay=0.1), "Adafactor: beta2_decay must be <= 0, got 0.1"),
        (lambda: Adafactor(eps=(-1, 0)), r"Adafactor: eps\[0\] must be >= 0, or None, got -1.0"),
        (lambda: Adafactor(eps=(None, None)), "Adafactor: eps must be 2 values, each a finite number, got"),
        (lambda: Adafactor(d=0.5), "Adafactor: d must be >= 1, got 0.5"),
    ],
)
def test_impossible_hyperparameters_are_refused(make: object, message: str) -> None:
    """The error names the rule, the field, what it must be and what was given."""
    with pytest.raises(InvalidArgument, match=f"^{message}") as caught:
        make()
    assert {"thing", "field", "expected", "given"} <= caught.value.details.keys()
    assert isinstance(caught.value, ValueError)
