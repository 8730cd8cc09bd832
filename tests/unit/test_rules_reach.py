"""What rules keep beside their arrays, how far they look, and what else servers ask of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stepd.errors import InvalidArgument
from stepd.rules import (
    ASGD,
    LAMB,
    LARS,
    SGD,
    Adadelta,
    Adafactor,
    Adam,
    Muon,
    NAdam,
    RMSprop,
    Rule,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
)
from tests.reference.cases import Case, error, other_final
from tests.reference.rule_cases import TORCH_CASES
from tests.unit.one_process import Tensor, train

MUON_CASES = [case for case in TORCH_CASES.values() if case.rule == "Muon"]


def step(rule: Rule, p: object, g: object, name: str = "w", steps: int = 1) -> Tensor:
    tensor = Tensor(rule, np.array(p, np.float64), name)
    for _ in range(steps):
        tensor.update(np.array(g, np.float64).reshape(-1), rule.lr, [])
    return tensor


# --- LARS and LAMB ----------------------------------------------------------------------------------------------------


def test_the_two_local_rates_of_lars() -> None:
    """The paper's has the decay in the denominator, the plain one has not; the decay is added in both."""
    p, g = [3.0, 4.0], [0.6, 0.8]  # of norms 5 and 1
    paper = step(LARS(1.0, weight_decay=0.1, trust_coefficient=0.01), p, g).p
    plain = step(LARS(1.0, weight_decay=0.1, trust_coefficient=0.01, variant="plain"), p, g).p
    np.testing.assert_allclose(paper, np.array(p) - 0.01 * 5 / (1 + 0.1 * 5) * np.array([0.9, 1.2]), rtol=1e-15)
    np.testing.assert_allclose(plain, np.array(p) - 0.01 * 5 / 1 * np.array([0.9, 1.2]), rtol=1e-15)


@pytest.mark.parametrize("name", ["layer.bias", "bias", "batchnorm.weight", "norm"])
def test_lars_excludes_by_name(name: str) -> None:
    """A name that matches takes the plain rate, with its decay."""
    np.testing.assert_allclose(step(LARS(0.1, weight_decay=0.5), [1.0], [2.0], name).p, [1 - 0.1 * 2.5], rtol=1e-15)
    assert step(LARS(0.1, exclude=()), [1.0], [2.0], name).p == 1 - 0.1 * 0.001 / 2 * 2


@pytest.mark.parametrize(("p", "g"), [([0.0], [2.0]), ([1.0], [0.0]), ([0.0], [0.0])])
@pytest.mark.parametrize("variant", ["paper", "plain"])
def test_lars_where_a_norm_is_zero(p: list[float], g: list[float], variant: str) -> None:
    """The plain rate, and nothing that is not a number."""
    rule = LARS(0.1, weight_decay=0.5, variant=variant)
    np.testing.assert_allclose(step(rule, p, g).p, np.array(p) - 0.1 * (np.array(g) + 0.5 * np.array(p)), rtol=1e-15)


def test_the_velocity_of_lars_has_taken_the_rate_in() -> None:
    """What is under way goes on at its own speed when the rate falls to 0."""
    tensor = step(LARS(0.1, momentum=0.5, exclude=("w",)), [1.0], [1.0])
    tensor.update(np.array([1.0]), 0.0, [])
    np.testing.assert_allclose(tensor.p, [1 - 0.1 - 0.05], rtol=1e-15)


def test_lamb_without_trust() -> None:
    """By name, and where there is nothing to compare with, it is Adam with decay."""
    p, g = [0.0, 0.0], [3.0, -2.0]
    np.testing.assert_allclose(step(LAMB(0.1), p, g).p, [-0.1, 0.1], rtol=1e-5)
    named = step(LAMB(0.1, weight_decay=0.5, exclude=("*.bias",)), [1.0], [3.0], "a.bias")
    np.testing.assert_allclose(named.p, [1 - 0.1 * 1.5], rtol=1e-5)
    np.testing.assert_allclose(step(LAMB(0.1, weight_decay=0), [2.0], [3.0]).p, [2 - 0.1 * 2], rtol=1e-5)


# --- Muon and Adafactor -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_muon_takes_matrices_only(shape: tuple[int, ...]) -> None:
    """The error names the parameter and its shape, and says what to do."""
    with pytest.raises(
        InvalidArgument, match=r"'conv\.w': Muon updates matrices only, got shape .*stepd\.AdamW"
    ) as caught:
        Muon().check_parameter("conv.w", shape)
    assert caught.value.details["parameter"] == "conv.w"
    assert caught.value.details["given"] == str(shape)
    Muon().check_parameter("w", (3, 4))
    Adafactor().check_parameter("w", shape)


@pytest.mark.parametrize("case", MUON_CASES, ids=str)
def test_muon_is_near_torchs_bfloat16(case: Case) -> None:
    """torch rounds its steps to bfloat16, 2^-9 of each: a hundred steps of 0.02 stay within half a percent."""
    theirs = other_final(case, "bfloat16")
    tensors, _ = train(case)
    assert 1e-5 < error(case, {name: tensor.p for name, tensor in tensors.items()}, theirs) < 5e-3


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5)])
def test_muon_steps_have_all_directions_alike(shape: tuple[int, int]) -> None:
    """Newton and Schulz bring every singular value near 1, whatever it was."""
    g = np.random.default_rng(1).standard_normal(shape)
    rule = Muon(1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    moved = -step(rule, np.zeros(shape), g).p.reshape(shape) / math.sqrt(max(1, shape[0] / shape[1]))
    u, _, v = np.linalg.svd(g, full_matrices=False)
    along = np.diag(u.T @ moved @ v.T)
    assert ((along > 0.6) & (along < 1.3)).all()
    np.testing.assert_allclose(u * along @ v, moved, atol=1e-12)


def test_a_muon_step_without_a_gradient() -> None:
    """Zeros stay zeros: nothing is divided by their norm."""
    assert step(Muon(1.0, weight_decay=0.0), np.ones((2, 3)), np.zeros((2, 3))).p.tolist() == [1.0] * 6


def test_buffers_of_adafactor() -> None:
    """A row and a column where there are two dimensions, everything where there are not; in torch's shapes."""
    kept = {buffer.name: buffer for buffer in Adafactor().buffers()}
    assert {name: buffer.shape((2, 3, 5)) for name, buffer in kept.items()} == {
        "row_var": (2, 3, 1),
        "col_var": (2, 1, 5),
        "variance": None,
    }
    assert {name: buffer.size((2, 3, 5)) for name, buffer in kept.items()} == {
        "row_var": 6,
        "col_var": 10,
        "variance": 0,
    }
    assert [buffer.size((7,)) for buffer in kept.values()] == [0, 0, 7]
    assert [buffer.size(()) for buffer in kept.values()] == [0, 0, 1]
    assert [buffer.size((3, 4)) for buffer in Adam().buffers()] == [12, 12]


# --- What is kept and asked besides -----------------------------------------------------------------------------------


def test_scalars() -> None:
    """torch's names and values: of NAdam and ASGD in float32, as there."""
    nadam = step(NAdam(), [1.0], [1.0])
    assert nadam.scalars == (float(np.float32(0.9 * (1 - 0.5 * 0.96**0.004))),)
    asgd = step(ASGD(0.1, lambd=0.5, t0=1), [1.0], [1.0], steps=3)
    assert [scalar.name for scalar in asgd.rule.scalars()] == ["eta", "mu"]
    assert asgd.scalars == (float(np.float32(0.1 / (1 + 0.5 * 0.1 * 3) ** 0.75)), 0.5)
    free = step(ScheduleFreeSGD(0.1, warmup_steps=2), [1.0], [1.0], steps=3)
    assert free.scalars == pytest.approx((0.1, 0.05**2 + 2 * 0.1**2), rel=1e-14)


@pytest.mark.parametrize("rule", [ScheduleFreeSGD(0.1), ScheduleFreeAdamW(0.1), ASGD(0.1, t0=0)], ids=repr)
def test_averages(rule: Rule) -> None:
    """Before the first step and after it the average is the parameter; later it is behind."""
    tensor = Tensor(rule, np.array([1.0, 2.0]))
    assert rule.averages
    assert tensor.average().tolist() == [1.0, 2.0]
    tensor.update(np.array([1.0, -1.0]), 0.1, [])
    np.testing.assert_allclose(tensor.average(), tensor.p, rtol=1e-15)
    for _ in range(9):
        tensor.update(np.array([1.0, -1.0]), 0.1, [])
    assert tensor.p[0] < tensor.average()[0] < 1
    assert 2 < tensor.average()[1] < tensor.p[1]


def test_a_rule_without_averages() -> None:
    """For evaluation there is nothing but the parameters."""
    tensor = step(Adam(0.1), [1.0], [1.0], steps=3)
    assert not tensor.rule.averages
    assert tensor.average().tolist() == tensor.p.tolist()


def test_a_centered_rmsprop_of_a_constant_gradient() -> None:
    """Rounding makes its variance negative now and then: p moves far, but stays a number."""
    tensor = Tensor(RMSprop(1e-3, alpha=0.5, centered=True), np.ones(64, np.float32))
    g = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    for _ in range(200):
        tensor.update(g, 1e-12, [])
    assert np.isfinite(tensor.p).all()


def test_a_cycled_momentum() -> None:
    """A schedule's momentum takes the place of momentum, or of the first beta; the rest stays."""
    assert SGD(0.1, momentum=0.9, nesterov=True).cycled(0.8) == SGD(0.1, momentum=0.8, nesterov=True)
    assert Adam(0.1, betas=(0.9, 0.99)).cycled(0.8) == Adam(0.1, betas=(0.8, 0.99))
    with pytest.raises(InvalidArgument, match="Adadelta has neither momentum nor betas for the schedule to cycle"):
        Adadelta().cycled(0.8)
