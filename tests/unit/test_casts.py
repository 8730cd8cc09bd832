"""Compiled casts against those of ml_dtypes and NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from stepd import casts
from stepd.casts import DTYPES, Half
from stepd.machine import available

KINDS: tuple[Half, ...] = ("bfloat16", "float16")

# Every upper half of a float32 with lower halves around the middle between two neighbours; of float16 the middle lies
# elsewhere, so also others.
LOWER = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x5000], np.uint32)
ALL = ((np.arange(1 << 16, dtype=np.uint32) << 16)[:, None] | LOWER).reshape(-1).view(np.float32)


@pytest.fixture
def compiled() -> casts.Loops:
    if not available():
        pytest.skip("without llvmlite")
    casts.known_loops().wait()
    return casts.known_loops()


def check_rounded(kind: Half, values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = values.astype(DTYPES[kind])
    got, number = casts.rounded(values, kind), ~np.isnan(values)
    np.testing.assert_array_equal(got.view(np.uint16)[number], expected.view(np.uint16)[number])
    assert np.isnan(got[~number].astype(np.float32)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiled")
def test_a_compiled_cast_rounds_as_the_other(kind: Half) -> None:
    check_rounded(kind, ALL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("compiled")
def test_a_compiled_cast_widens_as_the_other(kind: Half) -> None:
    """Also bytes that lie anywhere."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[kind])
    raw = b"x" + halves.tobytes()
    with np.errstate(all="ignore"):
        got, expected = casts.widened(memoryview(raw)[1:], kind), halves.astype(np.float32)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(got.view(np.uint32)[number], expected.view(np.uint32)[number])
    assert np.isnan(got[~number]).all()


def test_the_casts_are_compiled(compiled: casts.Loops) -> None:
    """And not done without all along."""
    assert all(compiled.get(f"{way}.bfloat16") for way in ("round", "widen"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 15])
def test_without_compiling_they_are_the_same(kind: Half, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casts, "available", lambda: False)
    check_rounded(kind, ALL[:size])
    np.testing.assert_array_equal(casts.widened(casts.rounded(ALL[:size], kind).tobytes(), kind).size, size)
