"""What rules, schedules and policies have in common: frozen dataclasses that check their fields.

A field is converted to its declared type once, when the object is made: `momentum=0` becomes 0.0, a list becomes a
tuple, and what does not fit (a bool or a string for a rate, a NaN) is refused by name. So the rest of the program sees
only values of the declared types, whoever wrote them: a user, or a message from the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeGuard, Union, get_args, get_origin, get_type_hints

import numpy as np

from stepd.errors import InvalidArgument

# Metadata of a float field that takes infinity.
MAY_BE_INFINITE: Final[Mapping[str, object]] = MappingProxyType({"may_be_infinite": True})
# Errors travel in gRPC metadata, which is refused over 16 KB; a name of 1 MB must not make its own error fail.
SHOWN_CHARS_MAX: Final = 160
# Numbers travel as doubles; larger integers would change on the way.
INTEGER_MAX: Final = 1 << 53
_NUMBERS: Final = (int, float)


def shown(value: object) -> str:
    """A value as it stands in an error: its repr, cut to a bounded length."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def detail(value: object) -> object:
    """A value as it stands in an error's details: simple ones as they are, the rest as `shown`."""
    if isinstance(value, str):
        return value[:SHOWN_CHARS_MAX]
    return value if isinstance(value, bool | int | float | NoneType) else shown(value)


def refuse(thing: str, field: str, value: object, expected: str) -> NoReturn:
    """Raise the InvalidArgument of a field that holds something else than it must."""
    raise InvalidArgument(
        f"{thing}: {field} must be {expected}, got {shown(value)}",
        thing=thing,
        field=field,
        expected=expected,
        given=detail(value),
    )


@dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses whose fields are converted to their types and checked."""

    def __post_init__(self) -> None:
        for name, kind, plain, may_be_infinite in _forms_of(type(self)):
            value = getattr(self, name)
            if _is_plain(value, plain):
                continue
            try:
                fitting = fit(kind, value, may_be_infinite=may_be_infinite)
            except Unfit as unfit:
                refuse(type(self).__name__, name, value, unfit.expected)
            object.__setattr__(self, name, fitting)
        self.check()

    def check(self) -> None:
        """Raise InvalidArgument, naming the field and its value, if a field is out of range. Types are right by now."""

    def require(self, holds: bool, field: str, value: object, expected: str) -> None:
        """Raise unless `holds`."""
        if not holds:
            refuse(type(self).__name__, field, value, expected)

    def require_not_negative(self, *names: str) -> None:
        """Raise unless these fields are at least 0."""
        for name in names:
            value = getattr(self, name)
            self.require(value >= 0, name, value, ">= 0")

    def require_decays(self, name: str) -> None:
        """Raise unless everything in a field is in [0, 1)."""
        for index, value in enumerate(getattr(self, name)):
            self.require(0 <= value < 1, f"{name}[{index}]", value, "in [0, 1)")


# Read once for each class: evaluating annotations takes a hundred microseconds.
_kinds: Final[dict[type, Mapping[str, Any]]] = {}


def field_kinds(cls: type[Settings]) -> Mapping[str, Any]:
    """The declared type of each field, by name, in order."""
    if cls not in _kinds:
        _kinds[cls] = _read_kinds(cls)
    return _kinds[cls]


def _read_kinds(cls: type[Settings]) -> Mapping[str, Any]:
    hints = get_type_hints(cls)
    return MappingProxyType({field.name: hints[field.name] for field in fields(cls)})


class _Form(NamedTuple):
    """What a field takes.

    Attributes:
        plain: a value of one of these very types is what `fit` gives for it, unless it is a number out of range.
    """

    name: str
    kind: Any
    plain: frozenset[type]
    may_be_infinite: bool


_forms: Final[dict[type, tuple[_Form, ...]]] = {}


def _forms_of(cls: type[Settings]) -> tuple[_Form, ...]:
    if cls not in _forms:
        kinds = field_kinds(cls)
        _forms[cls] = tuple(
            _Form(field.name, kinds[field.name], _plain(kinds[field.name]), "may_be_infinite" in field.metadata)
            for field in fields(cls)
        )
    return _forms[cls]


def _plain(kind: Any) -> frozenset[type]:
    either = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    # Of two kinds of numbers the first takes what fits the second.
    plain = [each for each in either if isinstance(each, type)]
    return frozenset(plain if not {int, float} <= {*plain} else {*plain} - {int, float})


def _is_plain(value: object, plain: frozenset[type]) -> bool:
    if type(value) not in plain:
        return False
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -INTEGER_MAX <= value <= INTEGER_MAX


def check_field_names(cls: type[Settings], names: Iterable[str]) -> None:
    """Raise InvalidArgument for the first name that is not a field."""
    known = field_kinds(cls)
    for name in names:
        if name not in known:
            expected = ", ".join(known) or "nothing"
            raise InvalidArgument(
                f"{cls.__name__} has no {shown(name)}; it has {expected}",
                thing=cls.__name__,
                field=detail(name),
                expected=expected,
                given=detail(name),
            )


class Unfit(Exception):
    """A value that does not fit a type. Never leaves this package: whoever knows the field's name makes the error."""

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


def fit(kind: Any, value: object, *, may_be_infinite: bool = False) -> object:
    """A value as the type of its field.

    Args:
        kind: float, int, bool, str, a tuple or a union or a Literal of them, None, or a class.
        value: anything.
        may_be_infinite: floats may be.

    Raises:
        Unfit: it cannot be one.
    """
    origin = get_origin(kind)
    if kind is float:
        return _fit_float(value, may_be_infinite)
    elif kind is int:
        return _fit_int(value)
    elif kind is bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise Unfit("True or False")
    elif origin is Literal:
        if isinstance(value, str) and value in get_args(kind):
            return value
        raise Unfit("one of " + ", ".join(map(repr, get_args(kind))))
    elif origin in (Union, UnionType):
        return _fit_union(get_args(kind), value, may_be_infinite)
    elif origin is tuple:
        return _fit_tuple(get_args(kind), value, may_be_infinite)
    elif isinstance(value, kind):
        return value
    raise Unfit({str: "a string", NoneType: "None"}.get(kind, kind.__name__))


def _fit_float(value: object, may_be_infinite: bool) -> float:
    if _is_number(value):
        try:
            number = float(value)
        except OverflowError:
            number = math.nan
        if math.isfinite(number) or (may_be_infinite and math.isinf(number)):
            return number
    raise Unfit("a number" if may_be_infinite else "a finite number")


def _fit_int(value: object) -> int:
    # 1000.0 is as good as 1000: numbers travel as doubles, and users write 1e3.
    if _is_number(value) and -INTEGER_MAX <= value <= INTEGER_MAX and int(value) == value:
        return int(value)
    raise Unfit("an integer")


def _is_number(value: object) -> TypeGuard[float]:
    # A bool is an int to Python, and no rate to anybody.
    return isinstance(value, Real) and not isinstance(value, bool)


def _fit_union(kinds: tuple[Any, ...], value: object, may_be_infinite: bool) -> object:
    expected = []
    for kind in kinds:
        try:
            return fit(kind, value, may_be_infinite=may_be_infinite)
        except Unfit as unfit:
            expected.append(unfit.expected)
    raise Unfit(" or ".join(expected))


def _fit_tuple(kinds: tuple[Any, ...], value: object, may_be_infinite: bool) -> tuple[object, ...]:
    open_ended = kinds[-1] is Ellipsis
    expected = "a list" if open_ended else f"{len(kinds)} values"
    if not isinstance(value, list | tuple) or (not open_ended and len(value) != len(kinds)):
        raise Unfit(expected)
    if open_ended and kinds[0] not in _NUMBERS and all(type(item) is kinds[0] for item in value):
        return tuple(value)  # of twenty thousand parameters
    each = kinds[:1] * len(value) if open_ended else kinds
    try:
        return tuple(fit(kind, item, may_be_infinite=may_be_infinite) for kind, item in zip(each, value, strict=True))
    except Unfit as unfit:
        raise Unfit(f"{expected}, each {unfit.expected}") from None
