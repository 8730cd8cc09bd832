"""Compiled updates give the bits of NumPy's, for every rule that is one loop over elements."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepd.rules import ASGD, LAMB, SGD, AdamW, Block, Moment, Reach, Rule, ScheduleFreeAdamW
from stepd.rules.base import Array
from stepd_server.kernels import updates
from stepd_server.kernels.compiled import Kernel, available, compiled
from stepd_server.kernels.emit import emit
from stepd_server.kernels.trace import Program, Recorder, Untraceable
from stepd_server.kernels.updates import Updates, prepare, record
from stepd_server.shard.sums import Shaping

from .shard_bench import Fleet, arrays, run

needs_compiler = pytest.mark.skipif(not available(), reason="llvmlite (stepd[fast]) is not installed")

PLAIN = Shaping(1.0, (math.inf,))
# What changes the operations of some rule or other.
OPTIONS: dict[str, Any] = {
    "maximize": True,
    "weight_decay": 0.1,
    "momentum": 0.9,
    "dampening": 0.3,
    "nesterov": True,
    "amsgrad": True,
    "centered": True,
    "decoupled_weight_decay": True,
    "t0": 2.0,
}
# Rprop packs masks into its scratch, and rules that see a tensor whole treat elements by their place.
NOT_ALIKE = {"Rprop"} | {name for name, rule in Rule.registry.items() if rule.reach is Reach.WHOLE}


def variants() -> list[Rule]:
    kinds = [
        kind
        for name, kind in sorted(Rule.registry.items())
        if name not in NOT_ALIKE and not inspect.isabstract(kind) and kind.__module__.startswith("stepd.")
    ]
    return [
        kind(**{"lr": 0.01, **{option: OPTIONS[option] for option in chosen}})
        for kind in kinds
        for chosen in choices({field.name for field in fields(kind)})
    ]


def choices(own: set[str]) -> list[tuple[str, ...]]:
    """None, each by itself, and what wants another."""
    return [(), *((option,) for option in OPTIONS if option in own - {"nesterov"})] + [
        ("momentum", "nesterov") for _ in range("nesterov" in own)
    ]


def numbers(seed: int, size: int, dtype: Any) -> Array:
    """With zeros of both signs, subnormals and large ones among them."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size).astype(dtype)
    values[::7] = 0
    values[3::11] = -0.0
    values[5::13] *= np.finfo(dtype).tiny
    values[6::17] *= 1e15
    return values


@needs_compiler
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["single", "double"])
@pytest.mark.parametrize("rule", variants(), ids=str)
def test_the_bits_are_those_of_numpy(rule: Rule, dtype: Any) -> None:
    """Over enough steps for every rule to have left its beginnings behind, with a divisor, a limit and a factor."""
    size, shaping, scale = 1003, Shaping(3.0, (0.5,)), 0.7
    p = numbers(0, size, dtype)
    buffers = [np.full(size, 0.0 if b.initial == "parameter" else b.initial, dtype) for b in rule.buffers()]
    for buffer, kept in zip(rule.buffers(), buffers, strict=True):
        if buffer.initial == "parameter":
            kept[...] = p
    arrays = [p, *buffers]
    twins = [array.copy() for array in arrays]
    scalars = tuple(scalar.initial for scalar in rule.scalars())
    scratch = tuple(np.empty(size, dtype) for _ in range(rule.scratch))
    for step in range(1, 13):
        total, g = numbers(step, size, dtype), np.empty(size, dtype)
        at = Moment(step, 0.01 * step, scalars, "w", (1.5, 2.5))
        program, constants = record(rule, at, shaping, 0, scale)
        with np.errstate(all="ignore"):
            shaping.gradient(total, 0, scale, g)
            rule.update(Block(p, g, tuple(buffers), scratch), at)
        compiled(program, np.dtype(dtype))(np.array(constants, dtype), [twins[0], total, *twins[1:]])
        for name, array, twin in zip(("p", *rule.buffers()), arrays, twins, strict=True):
            np.testing.assert_array_equal(twin.view(np.uint8), array.view(np.uint8), err_msg=f"{name} in step {step}")
        scalars = rule.advance(at)


@needs_compiler
@pytest.mark.parametrize("operation", [np.maximum, np.minimum, np.add, np.multiply, np.divide, np.subtract])
def test_infinities_and_nans_come_out_as_in_numpy(operation: Any) -> None:
    values = np.array([0.0, -0.0, 1.0, -2.0, math.inf, -math.inf, math.nan], np.float32)
    a, b = (np.ascontiguousarray(grid.ravel()) for grid in np.meshgrid(values, values))
    kernel, constants = kernel_of(lambda x, y: operation(x, y, out=x))
    got = a.copy()
    kernel(constants, [got, b])
    with np.errstate(all="ignore"):
        expected = operation(a, b)
    np.testing.assert_array_equal(got, expected)


@needs_compiler
@pytest.mark.parametrize("operation", [np.negative, np.abs, np.sqrt, np.sign])
def test_functions_of_one_number(operation: Any) -> None:
    values = np.array([0.0, -0.0, 1e-45, 3.0, -2.0, math.inf, -math.inf, math.nan], np.float32)
    kernel, constants = kernel_of(lambda x, _: operation(x, out=x))
    got = values.copy()
    kernel(constants, [got, values])
    with np.errstate(all="ignore"):
        expected = operation(values)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(np.signbit(got)[:-1], np.signbit(expected)[:-1])


@needs_compiler
@pytest.mark.parametrize("size", [0, 1, 7, 64, 65_537])
def test_arrays_of_any_length(size: int) -> None:
    kernel, constants = kernel_of(lambda x, y: np.add(x, y, out=x))
    x, y = np.ones(size, np.float32), np.full(size, 2, np.float32)
    kernel(constants, [x, y])
    assert (x == 3).all()
    assert (y == 2).all()


def kernel_of(code: Any) -> tuple[Kernel, Array]:
    recorder = Recorder()
    code(recorder.array("x"), recorder.array("y"))
    program = recorder.program(("x", "y"))
    return compiled(program, np.dtype(np.float32)), np.array(recorder.constants, np.float32)


def test_another_rate_is_the_same_program() -> None:
    first, constants = record(AdamW(), Moment(2, 0.1), PLAIN, 0, 1.0)
    second, others = record(AdamW(eps=1e-3), Moment(5, 0.2), PLAIN, 0, 0.5)
    assert first == second
    assert constants != others


@needs_compiler
def test_the_same_program_is_compiled_once() -> None:
    programs = [record(AdamW(), Moment(step, 0.1), PLAIN, 0, 1.0)[0] for step in (2, 3)]
    assert compiled(programs[0], np.dtype(np.float32)) is compiled(programs[1], np.dtype(np.float32))


@pytest.mark.parametrize("name", sorted(NOT_ALIKE))
def test_what_does_not_treat_elements_alike_is_left_to_numpy(name: str) -> None:
    with pytest.raises(Untraceable):
        record(Rule.registry[name](lr=0.1), Moment(1, 0.1), PLAIN, 0, 1.0)


@pytest.mark.parametrize(
    "code",
    [
        lambda x: x + 1,
        lambda x: np.add(x, 1),
        lambda x: np.add(x, np.float64(1), out=x),
        lambda x: np.add(x, np.ones(3), out=x),
        lambda x: np.add(np.ones(3), x, out=np.ones(3)),
        lambda x: np.add(x, 1, out=x, where=False),
        lambda x: np.exp(x, out=x),
        np.add.reduce,
        np.sum,
        lambda x: np.copyto(x, 1, where=True),
        lambda x: x[1:],
        lambda x: x.__setitem__(0, 1),
        lambda x: 1 if x > 0 else 2,
        bool,
        lambda x: x.view(np.uint8),
        len,
        lambda x: np.add(x, Recorder().array("of another"), out=x),
    ],
)
def test_what_a_loop_cannot_repeat_is_refused(code: Any) -> None:
    with pytest.raises((Untraceable, TypeError)):
        code(Recorder().array("x"))


def test_nothing_may_be_approximated_or_fused() -> None:
    text = emit(record(AdamW(amsgrad=True), Moment(2, 0.1), Shaping(2.0, (1.0,)), 0, 1.0)[0], "float")
    assert not {"fast", "contract", "reassoc", "nnan", "ninf", "nsz", "arcp", "afn"} & set(text.split())
    assert "fmuladd" not in text
    assert "llvm.fma" not in text


def test_reading_what_was_never_written_is_a_mistake() -> None:
    recorder = Recorder()
    np.add(recorder.array("x"), recorder.array("t"), out=recorder.array("x"))
    with pytest.raises(AssertionError, match="t is read"):
        emit(recorder.program(("x",)), "float")


@needs_compiler
def test_small_blocks_are_not_worth_it_unless_it_is_there() -> None:
    rule, at = SGD(lr=0.1), Moment(1, 0.1)
    step = Updates(np.dtype(np.float32), PLAIN)
    assert step.find(0, rule, 1.0, at, 10) is None
    assert step.find(0, rule, 1.0, at, 1 << 14)
    update, small = step.find(0, rule, 1.0, at, 10), np.ones(10, np.float32)
    assert update
    update.kernel(update.constants, [small, np.ones(10, np.float32)])
    np.testing.assert_array_equal(small, np.float32(0.9))


@needs_compiler
@pytest.mark.parametrize("rule", [AdamW(0.1), ASGD(0.1, t0=1), LAMB(0.1), ScheduleFreeAdamW(0.1)], ids=repr)
def test_shards_step_alike_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    async def trained(folder: Path) -> dict[str, bytes]:
        fleet = Fleet(folder, arrays(0), rule, shards=2)
        await fleet.start()
        for step in range(4):
            await fleet.step(arrays(step + 1), round=step, lr=0.1)
        return {name: value.tobytes() for name, value in (await fleet.pull()).items()}

    async def scenario() -> None:
        expected = await trained(tmp_path / "numpy")
        monkeypatch.setattr(updates, "_ELEMENTS_MIN", 0)
        ran: list[bool] = []
        find = Updates.find

        def counted(*arguments: Any) -> Any:
            found = find(*arguments)
            ran.append(found is not None)
            return found

        monkeypatch.setattr(Updates, "find", counted)
        assert await trained(tmp_path / "compiled") == expected
        assert ran
        assert all(ran)

    run(scenario)


@needs_compiler
def test_the_first_steps_are_compiled_before_they_come() -> None:
    rule, dtype = AdamW(0.125, betas=(0.75, 0.875), amsgrad=True), np.dtype(np.float64)
    thread = prepare([(rule, math.inf), (Rule.registry["Rprop"](lr=0.1), 1.0)], dtype, 1 << 20)
    assert thread
    thread.join()
    before = compiled.cache_info().misses
    for step in (1, 2, 3):
        assert Updates(dtype, PLAIN).find(0, rule, 0.5, Moment(step, 0.25), 1 << 14)
    assert compiled.cache_info().misses == before
    assert prepare([(rule, math.inf)], dtype, 1) is None


def test_a_rule_without_a_kernel_is_refused_quietly() -> None:
    rule = Rule.registry["Rprop"](lr=0.1)
    step = Updates(np.dtype(np.float32), PLAIN)
    assert step.find(0, rule, 1.0, Moment(1, 0.1), 1 << 14) is None


def test_programs_can_be_told_apart() -> None:
    assert Program(("p",), (), 0) != Program(("p", "total"), (), 0)
