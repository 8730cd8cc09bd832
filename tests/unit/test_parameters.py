"""From what users give to what travels: parameters and groups, in every kind of array, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from stepd import limits, specs
from stepd.errors import (
    DtypeMismatch,
    InvalidArgument,
    OverlappingGroups,
    ResourceExhausted,
)
from stepd.parameters import ParameterTable, ParamGroup, check_gradients, define_run
from stepd.policies import Clip, ClipNorm, ClipValue, Sync
from stepd.rules import SGD, Adam, AdamW
from stepd.schedules import Constant, Cosine, Warmup

F32 = np.float32
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)


class Wrapped:
    """Somebody else's array."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.value


def define(params: Any, **arguments: Any) -> tuple[specs.RunSpec, list[np.ndarray]]:
    message, initial = define_run("run", params, **{"optimizer": SGD()} | arguments)
    return specs.run_from_proto(message), initial


def test_a_run_from_a_mapping() -> None:
    """Parameters get their ids in the order of the mapping, and one group."""
    arguments = {"schedule": Cosine(10), "clip": ClipNorm(1.0), "sync": Sync(workers=2), "on_nonfinite": "error"}
    run, initial = define({"w": np.ones((2, 3), F32), "b": np.zeros(3, F32)}, missing="error", **arguments)
    assert [(p.name, p.shape, p.dtype, p.group) for p in run.parameters] == [
        ("w", (2, 3), np.dtype(F32), 0),
        ("b", (3,), np.dtype(F32), 0),
    ]
    assert run.groups == (specs.GroupSpec(SGD()),)
    assert (run.schedule, run.clip, run.sync) == (Cosine(10), Clip(1.0), Sync(workers=2))
    assert (run.on_nonfinite, run.missing) == ("error", "error")
    assert [value.shape for value in initial] == [(2, 3), (3,)]


def test_the_defaults_of_a_run() -> None:
    """No schedule, no clip, Sync(), skip and skip."""
    run, _ = define({"w": np.ones(3, F32)})
    assert (run.schedule, run.clip, run.sync, run.on_nonfinite, run.missing) == (None, None, Sync(), "skip", "skip")


def test_a_run_from_groups() -> None:
    """Each group has the run's optimizer with its own values put in, or its own optimizer."""
    a, b, c = ({name: np.ones(2, F32)} for name in "abc")
    groups = [
        ParamGroup(a, lr=0.5, betas=[0.5, 0.5]),
        ParamGroup(b, schedule=Warmup(3), clip=ClipValue(2.0)),
        ParamGroup(c, optimizer=SGD(0.1), momentum=0.9),
    ]
    run, _ = define(groups, optimizer=AdamW(weight_decay=0.1))
    assert run.groups == (
        specs.GroupSpec(AdamW(lr=0.5, betas=(0.5, 0.5), weight_decay=0.1)),
        specs.GroupSpec(AdamW(weight_decay=0.1), schedule=Warmup(3), clip=Clip(value=2.0)),
        specs.GroupSpec(SGD(0.1, momentum=0.9)),
    )
    assert [p.group for p in run.parameters] == [0, 1, 2]
    assert run.schedule_of(0) == Constant()


def test_names_of_parameters_are_the_users_own() -> None:
    """Dots, slashes, spaces and any script."""
    names = ["layer.0/weight", "a b", "Gewicht_ä", "重み", "🙂", "*", "x" * 512]
    run, _ = define({name: np.zeros(1, F32) for name in names})
    assert [p.name for p in run.parameters] == names


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_their_masters(dtype: Any) -> None:
    """The spec keeps the owner's dtype; 16-bit parameters travel as float32."""
    value = np.array([0.5, -1.25], dtype)
    run, (initial,) = define({"w": value})
    assert run.parameters[0].dtype == dtype
    assert initial.dtype == run.master == (np.float64 if dtype is np.float64 else np.float32)
    assert initial.tolist() == [0.5, -1.25]


def test_one_double_makes_all_double() -> None:
    """Beside a float64 parameter every master is float64."""
    _, initial = define({"a": np.float32([1.5]), "b": np.float64([2.5]), "c": np.float16([3.5])})
    assert [value.dtype for value in initial] == [np.float64] * 3
    assert [value.tolist() for value in initial] == [[1.5], [2.5], [3.5]]


def misaligned(value: np.ndarray) -> np.ndarray:
    raw = np.frombuffer(b"\0" + value.tobytes(), np.uint8)[1:]
    return raw.view(value.dtype).reshape(value.shape)


GRID = np.arange(12).reshape(3, 4)
KINDS: dict[str, Callable[[Any], Any]] = {
    "fortran": lambda dtype: np.asfortranarray(GRID.astype(dtype)),
    "transposed": lambda dtype: np.ascontiguousarray(GRID.T.astype(dtype)).T,
    "strided": lambda dtype: np.repeat(GRID, 2, axis=1).astype(dtype)[:, ::2],
    "reversed": lambda dtype: np.ascontiguousarray(GRID[::-1].astype(dtype))[::-1],
    "broadcast": lambda dtype: np.broadcast_to(np.array(3, dtype), (3, 4)),
    "swapped": lambda dtype: GRID.astype(dtype).astype(np.dtype(dtype).newbyteorder(">")),
    "misaligned": lambda dtype: misaligned(GRID.astype(dtype)),
    "scalar": lambda dtype: np.array(2, dtype),
    "numpy scalar": lambda dtype: np.array([2], dtype)[0],
    "empty": lambda dtype: np.zeros((0, 5), dtype),
    "wrapped": lambda dtype: Wrapped(GRID.astype(dtype)),
    "read-only": lambda dtype: np.frombuffer(GRID.astype(dtype).tobytes(), dtype).reshape(3, 4),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_array_is_understood(kind: str, dtype: Any) -> None:
    """In any order of memory and of bytes, 0-d, empty or wrapped: the same values, C-contiguous and native."""
    value = KINDS[kind](dtype)
    expected = np.asarray(value).astype(np.float64)
    run, (initial,) = define({"w": value})
    gradient = check_gradients(ParameterTable(run.parameters), {"w": value})[0]
    for sent in (initial, gradient):
        assert type(sent) is np.ndarray
        assert sent.flags.c_contiguous
        assert sent.flags.aligned
        assert sent.dtype.isnative
        assert sent.dtype == run.master
        assert sent.shape == run.parameters[0].shape == expected.shape
        np.testing.assert_array_equal(sent, expected)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, np.int32),
        np.zeros(2, np.bool_),
        np.zeros(2, np.complex64),
        np.zeros(2, object),
        np.zeros(2, np.longdouble),
        np.zeros(2, ml_dtypes.float8_e4m3fn),
        np.array(["a"]),
        np.zeros(2, [("a", F32)]),
        [1.0, 2.0],
        1.0,
        None,
        "w",
        {"nested": np.zeros(2, F32)},
    ],
    ids=lambda value: str(getattr(value, "dtype", type(value).__name__)),
)
def test_other_dtypes_are_refused(value: object) -> None:
    """The error names the parameter, what it may be and what was given; lists have no dtype and are not guessed at."""
    given = str(getattr(value, "dtype", type(value).__name__))
    with pytest.raises(DtypeMismatch) as caught:
        define({"fine": np.zeros(1, F32), "the.name": value})
    assert caught.value.details == {
        "parameter": "the.name",
        "expected": "float64, float32, float16, bfloat16",
        "given": given,
    }
    assert all(str(detail) in str(caught.value) for detail in caught.value.details.values())


def test_an_array_that_cannot_be_read() -> None:
    """What the array itself has to say, such as a tensor that needs .detach(), is in the error."""

    class Stubborn:
        dtype = "float32"

        def __array__(self, *_: Any, **__: Any) -> np.ndarray:
            raise RuntimeError("call .detach() first")

    with pytest.raises(InvalidArgument, match=r"parameter 'w': cannot be read as an array: call .detach\(\) first"):
        define({"w": Stubborn()})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", [(0, 0), (299, 400), (100, 7)])
def test_initial_parameters_must_be_finite(bad: float, dtype: Any, index: tuple[int, int]) -> None:
    """The first NaN or infinity is named with its parameter and index, in any order of memory."""
    value = np.asfortranarray(np.ones((300, 401), dtype))
    value[index] = value[299, 400] = bad
    with pytest.raises(InvalidArgument) as caught:
        define({"w": value})
    assert caught.value.reason == "NONFINITE_PARAMETER"
    assert caught.value.details["parameter"] == "w"
    assert caught.value.details["index"] == index
    assert str(caught.value) == f"parameter 'w': must be finite, got {bad} at index {index}"


def test_a_scalar_that_is_not_finite() -> None:
    """A scalar's index is the empty one."""
    with pytest.raises(InvalidArgument, match=r"got nan at index \(\)"):
        define({"w": np.array(np.nan, F32)})


def test_large_values_are_finite() -> None:
    """Values whose sum overflows are still values."""
    define({"w": np.full(10, np.finfo(F32).max)})


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"name": "a/b"}, InvalidArgument, "run: name must be 1 to 128 characters of A-Z, .*, got 'a/b'"),
        ({"name": "a.b"}, InvalidArgument, "run: name must be .* got 'a.b'"),
        ({"name": "-a"}, InvalidArgument, "run: name must be .* not starting with -, got '-a'"),
        ({"name": "a\n"}, InvalidArgument, r"run: name must be .* got 'a\\n'"),
        ({"name": ""}, InvalidArgument, "run: name must be .* got ''"),
        ({"name": "é"}, InvalidArgument, "run: name must be .* got 'é'"),
        ({"name": "a" * 129}, InvalidArgument, "run: name must be .* got 'aaa"),
        ({"name": 3}, InvalidArgument, "name must be .* got 3"),
        ({"params": {}}, InvalidArgument, "run 'run': params must be at least one parameter"),
        ({"params": []}, InvalidArgument, "run 'run': params must be at least one parameter"),
        (
            {"params": 3},
            InvalidArgument,
            "params must be a mapping of name to array, or a sequence of ParamGroup, got 3",
        ),
        ({"params": [{"params": {}}]}, InvalidArgument, r"params\[0\] must be a ParamGroup, got {'params'"),
        ({"params": {"": np.ones(1)}}, InvalidArgument, "parameter: name must be 1 to 512 printable .* got ''"),
        ({"params": {"a\tb": np.ones(1)}}, InvalidArgument, r"parameter: name must be .* got 'a\\tb'"),
        ({"params": {"\ud800": np.ones(1)}}, InvalidArgument, r"parameter: name must be .* got '\\ud800'"),
        ({"params": {"x" * 513: np.ones(1)}}, InvalidArgument, "parameter: name must be .* got 'xxx"),
        ({"params": {3: np.ones(1)}}, InvalidArgument, "parameter: name must be .* got 3"),
        ({"optimizer": "adam"}, InvalidArgument, "run 'run': optimizer must be an optimizer such as .* got 'adam'"),
        ({"optimizer": SGD}, InvalidArgument, "run 'run': optimizer must be .* got <class"),
        ({"schedule": 0.1}, InvalidArgument, "run 'run': schedule must be a schedule such as .* or None, got 0.1"),
        ({"clip": 1.0}, InvalidArgument, "run 'run': clip must be stepd.ClipNorm, ClipValue, Clip or None, got 1.0"),
        ({"sync": 2}, InvalidArgument, "run 'run': sync must be stepd.Sync, Async, BoundedStaleness or None, got 2"),
        ({"on_nonfinite": "ignore"}, InvalidArgument, "on_nonfinite must be one of 'skip', 'quarantine', 'error', got"),
        ({"missing": None}, InvalidArgument, "missing must be one of 'skip', 'error', got None"),
        (
            {"params": [ParamGroup({"w": np.ones(1)}), ParamGroup({"w": np.ones(1)})]},
            OverlappingGroups,
            "parameter 'w' stands twice, in the groups 0 and 1",
        ),
        (
            {"params": [ParamGroup({"w": np.ones(1)}, beta=1)]},
            InvalidArgument,
            "SGD has no 'beta'; it has lr, momentum, dampening, weight_decay, nesterov, maximize",
        ),
        ({"params": [ParamGroup({"w": np.ones(1)}, lr=-1)]}, InvalidArgument, "SGD: lr must be >= 0, got -1.0"),
        ({"params": [ParamGroup({"w": np.ones(1)}, lr="1")]}, InvalidArgument, "SGD: lr must be a finite number"),
        (
            {"params": {"w": np.broadcast_to(F32(0), (1 << 23, 1 << 22))}},
            ResourceExhausted,
            r"parameter 'w': at most 17592186044416 elements, got the shape \(8388608, 4194304\)",
        ),
    ],
)
def test_what_is_no_run(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Each error names the thing, what it must be and what was given."""
    arguments = {"name": "run", "params": {"w": np.ones(1, F32)}, "optimizer": SGD()} | change
    with pytest.raises(kind, match=message) as caught:
        define_run(arguments.pop("name"), arguments.pop("params"), **arguments)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": [np.ones(1)]}, "ParamGroup: params must be a mapping of name to array, got"),
        ({"optimizer": Adam(), "momentum": 0.9}, "Adam has no 'momentum'; it has lr, betas, eps"),
        ({"optimizer": Adam(), "eps": -1}, "Adam: eps must be >= 0, got -1.0"),
        ({"optimizer": "sgd"}, "ParamGroup: optimizer must be an optimizer such as"),
        ({"schedule": "cosine"}, "ParamGroup: schedule must be a schedule such as"),
        ({"clip": 1}, "ParamGroup: clip must be stepd.ClipNorm, ClipValue, Clip or None, got 1"),
    ],
)
def test_what_is_no_group(arguments: dict[str, Any], message: str) -> None:
    """What can be known when the group is made is refused there."""
    with pytest.raises(InvalidArgument, match=message):
        ParamGroup(**{"params": {"w": np.ones(1)}} | arguments)


def test_too_many_parameters() -> None:
    """The limit and the number given are in the error."""
    one = np.zeros(0, F32)
    params = {str(i): one for i in range(limits.PARAMETERS_MAX + 1)}
    with pytest.raises(ResourceExhausted, match="run 'run': at most 20000 parameters, got 20001"):
        define(params)


def test_a_group_prints_what_it_was_given() -> None:
    """Not its arrays."""
    group = ParamGroup({"w": np.ones(9)}, schedule=Warmup(3), lr=0.1)
    assert repr(group) == "ParamGroup(params={1 parameters}, schedule=Warmup(warmup_steps=3), lr=0.1)"
