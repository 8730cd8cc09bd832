"""Sums without rounding, against fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepd.errors import InvalidArgument
from stepd.v1 import round_pb2
from stepd_server.exact import ExactSum

terms = st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)


def exactly(total: ExactSum) -> Fraction:
    return Fraction(total.units, 2**1074)


@given(st.lists(terms))
def test_a_sum_is_exact_and_rounded_once(values: list[float]) -> None:
    total = ExactSum()
    for value in values:
        total.add(value)
    expected = sum(map(Fraction, values), Fraction(0))
    assert exactly(total) == expected
    try:
        assert total.total() == float(expected)
    except OverflowError:
        assert total.total() == math.inf


@given(st.lists(st.lists(terms), max_size=5), st.randoms(use_true_random=False))
def test_neither_order_nor_division_changes_a_bit(shards: list[list[float]], random: object) -> None:
    one_by_one = ExactSum()
    for value in sorted(value for shard in shards for value in shard):
        one_by_one.add(value)
    merged = ExactSum()
    for shard in shards:
        part = ExactSum()
        part.add_array(np.array(shard, np.float64))
        merged.merge(ExactSum.from_proto(part.to_proto()))
    assert merged == one_by_one


def test_an_array_of_thousands_over_the_whole_range_is_exact() -> None:
    random = np.random.default_rng(5)
    values = np.abs(random.standard_normal(5000)) * 10.0 ** random.integers(-322, 300, 5000)
    total = ExactSum()
    total.add_array(values)
    assert exactly(total) == sum(map(Fraction, values.tolist()), Fraction(0))


@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (1,)])
def test_arrays_of_any_shape_are_taken(shape: tuple[int, ...]) -> None:
    total = ExactSum()
    total.add_array(np.full(shape, 0.1))
    assert exactly(total) == Fraction(0.1) * math.prod(shape)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 5e-324, 2.2250738585072014e-308, 2.225073858507201e-308, 1.7976931348623157e308]
)
def test_the_ends_of_the_range(value: float) -> None:
    one, many = ExactSum(), ExactSum()
    one.add(value)
    many.add_array(np.array([value]))
    assert one == many
    assert one.total() == value


def test_a_total_past_the_largest_double_is_infinite() -> None:
    total = ExactSum()
    total.add_array(np.full(2, 1.7976931348623157e308))
    assert total.total() == math.inf
    assert not total.overflow
    assert ExactSum.from_proto(total.to_proto()) == total


@pytest.mark.parametrize("term", [math.inf, math.nan])
def test_a_term_that_is_not_finite_makes_the_sum_infinite_for_good(term: float) -> None:
    one, many = ExactSum(), ExactSum()
    one.add(term)
    many.add_array(np.array([1.0, term]))
    assert one.overflow
    assert many.overflow
    one.merge(ExactSum(1))
    assert one.total() == math.inf
    assert ExactSum.of([ExactSum(), many]).overflow
    assert ExactSum.from_proto(many.to_proto()).total() == math.inf


def test_a_negative_term_is_a_programmers_error() -> None:
    with pytest.raises(ValueError, match="negative"):
        ExactSum().add(-1.0)
    with pytest.raises(ValueError, match="negative"):
        ExactSum().add_array(np.array([1.0, -1.0]))


def test_the_form_on_the_wire_is_what_the_contract_says() -> None:
    total = ExactSum()
    total.add(3 * 2.0**-1074)
    assert total.to_proto() == round_pb2.ExactSum(units=b"\x03")
    assert ExactSum().to_proto() == round_pb2.ExactSum()


def test_a_sum_longer_than_any_honest_one_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most"):
        ExactSum.from_proto(round_pb2.ExactSum(units=b"\x01" * 1000))


def test_it_prints_as_its_value() -> None:
    total = ExactSum()
    total.add(0.5)
    assert repr(total) == "ExactSum(0.5)"
