"""From what users give to what travels: gradients, and what is refused."""

from __future__ import annotations

from array import array
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepd import specs
from stepd.errors import (
    DtypeMismatch,
    InvalidArgument,
    MissingGradient,
    ShapeMismatch,
    UnknownParameter,
)
from stepd.parameters import ParameterTable, check_gradients, define_run
from stepd.rules import SGD

F32 = np.float32
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


def table(**params: Any) -> ParameterTable:
    message, _ = define_run("run", params, optimizer=SGD())
    return ParameterTable(specs.run_from_proto(message).parameters)


def test_gradients_are_not_copied() -> None:
    """What is right already is the caller's own array."""
    grads = {"w": np.ones((2, 3), F32), "b": np.ones((), F32)}
    checked = check_gradients(table(w=grads["w"], b=grads["b"]), grads)
    assert checked[0] is grads["w"]
    assert checked[1] is grads["b"]


def test_gradients_come_in_the_order_of_ids() -> None:
    """Whatever the order of the mapping: a push is ascending."""
    one = np.ones(1, F32)
    assert list(check_gradients(table(a=one, b=one, c=one), {"c": one, "a": one})) == [0, 2]


def test_a_gradient_may_be_left_out() -> None:
    """By leaving the name out or by None, as in torch."""
    one = np.ones(1, F32)
    assert list(check_gradients(table(a=one, b=one), {"a": None, "b": one})) == [1]
    assert check_gradients(table(a=one), {}) == {}


@pytest.mark.parametrize("grads", [{"a": np.ones(1, F32)}, {"a": np.ones(1, F32), "b": None}])
def test_no_gradient_may_be_left_out(grads: dict[str, Any]) -> None:
    """With missing="error" the first that is missing is named."""
    one = np.ones(1, F32)
    with pytest.raises(
        MissingGradient, match=r"no gradient for parameter 'b': .* expected 2 gradients, got 1"
    ) as caught:
        check_gradients(table(a=one, b=one), grads, missing="error")
    assert caught.value.details == {"parameter": "b", "expected": 2, "given": 1}


def test_an_unknown_name() -> None:
    """The error names it and what is near to it."""
    one = np.ones(1, F32)
    parameters = table(**{f"layer.{i}": one for i in range(100)}, head=one)
    with pytest.raises(UnknownParameter, match=r"no parameter 'haed'; the run has 'head', .*, \.\.\.") as caught:
        check_gradients(parameters, {"haed": one})
    assert caught.value.details["parameter"] == "haed"
    with pytest.raises(UnknownParameter, match="no parameter 3"):
        check_gradients(parameters, cast("dict[str, Any]", {3: one}))
    with pytest.raises(UnknownParameter, match="no parameter 'none'"):
        check_gradients(parameters, {"none": None})


@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1), ()])
def test_a_wrong_shape(shape: tuple[int, ...]) -> None:
    """Shapes must be equal: nothing is broadcast or flattened."""
    with pytest.raises(ShapeMismatch) as caught:
        check_gradients(table(w=np.ones((2, 3), F32)), {"w": np.ones(shape, F32)})
    assert str(caught.value) == f"gradient of parameter 'w': shape must be (2, 3), got {shape}"
    assert caught.value.details == {"parameter": "w", "expected": (2, 3), "given": shape}


@pytest.mark.parametrize("given", [np.int32, *DTYPES])
@pytest.mark.parametrize("expected", DTYPES)
def test_dtypes_of_gradients(expected: Any, given: Any) -> None:
    """The parameter's own; for one of 16 bits float32 too. Anything else names both."""
    parameters = table(w=np.ones(2, expected))
    sixteen = expected in (np.float16, ml_dtypes.bfloat16)
    if given is expected or (sixteen and given is np.float32):
        assert check_gradients(parameters, {"w": np.ones(2, given)})[0].dtype == parameters.master
        return
    with pytest.raises(DtypeMismatch) as caught:
        check_gradients(parameters, {"w": np.ones(2, given)})
    takes = f"{np.dtype(expected)} or float32" if sixteen else str(np.dtype(expected))
    assert caught.value.details == {"parameter": "w", "expected": takes, "given": str(np.dtype(given))}
    assert str(caught.value) == f"gradient of parameter 'w': dtype must be {takes}, got {np.dtype(given)}"


@pytest.mark.parametrize("value", [[1.0], 1.0, array("f", [1.0])])
def test_a_gradient_without_a_dtype(value: object) -> None:
    """A list is not guessed at."""
    with pytest.raises(DtypeMismatch, match="gradient of parameter 'w': must be an array with a dtype of"):
        check_gradients(table(w=np.ones(1, F32)), {"w": value})


def test_gradients_must_be_a_mapping() -> None:
    """Names say which is which; an order would have to be guessed."""
    with pytest.raises(InvalidArgument, match="gradients: grads must be a mapping of name to array, got"):
        check_gradients(table(w=np.ones(1, F32)), [np.ones(1, F32)])


def test_gradients_of_a_double_run() -> None:
    """A float32 gradient beside float64 parameters is widened."""
    parameters = table(a=np.ones(1, F32), b=np.ones(1))
    assert check_gradients(parameters, {"a": np.ones(1, F32)})[0].dtype == np.float64


@settings(deadline=None)
@given(st.permutations(range(4)), st.sampled_from(["C", "F"]))
def test_transposed_gradients(axes: list[int], order: Any) -> None:
    """Every order of axes in memory gives the same elements."""
    value = np.arange(120, dtype=F32).reshape(2, 3, 4, 5)
    given_value = np.array(value.transpose(axes), order=order).transpose(np.argsort(axes))
    checked = check_gradients(table(w=value), {"w": given_value})[0]
    assert checked.tobytes() == value.tobytes()
