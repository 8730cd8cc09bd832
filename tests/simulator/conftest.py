"""For all tests of worlds."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def still() -> Iterator[None]:
    """No garbage collector: it would run finalizers at any moment, which is no part of a history."""
    gc.collect()
    gc.freeze()  # what is there by now is not looked at again after each world
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
