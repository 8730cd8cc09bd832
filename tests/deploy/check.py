"""What a check is: a function that finds what is wrong in the manifests and says it in a sentence each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .manifests import Manifests

Check = Callable[[Manifests], Iterator[str]]

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Make the function one of the checks."""
    CHECKS[function.__name__] = function
    return function


def expect(subject: str, given: Any, expected: Any) -> Iterator[str]:
    """A finding unless both are equal and of one type: `True` is not "true", and 0 is not false."""
    if given != expected or type(given) is not type(expected):
        yield f"{subject}: expected {expected!r}, is {given!r}"
