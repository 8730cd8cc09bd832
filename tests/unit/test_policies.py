"""Clips and synchronisation."""

from __future__ import annotations

import math

import pytest

from stepd.errors import InvalidArgument
from stepd.policies import Async, BoundedStaleness, Clip, ClipNorm, ClipValue, Sync


def test_a_clip_takes_numbers_or_limits() -> None:
    """Clip(norm=1.0) is Clip(norm=ClipNorm(1.0)), and so for the value."""
    assert Clip(norm=1, value=2) == Clip(norm=ClipNorm(1.0), value=ClipValue(2.0))
    assert Clip(norm=ClipNorm(1.0, math.inf)).norm == ClipNorm(1.0, norm_type=math.inf)
    assert Clip(value=2).norm is None


@pytest.mark.parametrize(
    "clip", [ClipNorm(1.0), ClipNorm(2.0, 1.0), ClipValue(0.5), Clip(ClipNorm(1.0), ClipValue(2.0))]
)
def test_one_form_for_programs_one_for_people(clip: ClipNorm | ClipValue | Clip) -> None:
    """Clip.of gives the form that holds both limits, simplest the one that a user would write."""
    both = Clip.of(clip)
    assert isinstance(both, Clip)
    assert Clip.of(both) is both
    assert both.simplest() == clip


def test_the_scale_is_torchs() -> None:
    """min(1, max_norm / (norm + 1e-6)): never above 1, and defined for a gradient of zeros."""
    clip = ClipNorm(2.0)
    assert clip.scale(4.0) == 2.0 / (4.0 + 1e-6)
    assert clip.scale(1.0) == clip.scale(0.0) == 1.0


def test_the_default_sync() -> None:
    """Whoever has joined, the mean, in order of arrival."""
    assert Sync() == Sync(workers=None, quorum=None, grace=0.0, reduce="mean", deterministic=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipNorm(0), "ClipNorm: max_norm must be > 0, got 0.0"),
        (lambda: ClipNorm(-1), "ClipNorm: max_norm must be > 0, got -1.0"),
        (lambda: ClipNorm(float("nan")), "ClipNorm: max_norm must be a finite number, got nan"),
        (lambda: ClipNorm(float("inf")), "ClipNorm: max_norm must be a finite number, got inf"),
        (lambda: ClipNorm(1, 0), "ClipNorm: norm_type must be > 0, got 0.0"),
        (lambda: ClipNorm(1, -math.inf), "ClipNorm: norm_type must be > 0, got -inf"),
        (lambda: ClipNorm(1, "inf"), "ClipNorm: norm_type must be a number, got 'inf'"),
        (lambda: ClipNorm(True), "ClipNorm: max_norm must be a finite number, got True"),
        (lambda: ClipValue(0), "ClipValue: max_value must be > 0, got 0.0"),
        (Clip, "Clip: norm must be given if value is not, got None"),
        (lambda: Clip(norm=-1), "ClipNorm: max_norm must be > 0, got -1.0"),
        (lambda: Clip(value="x"), "ClipValue: max_value must be a finite number, got 'x'"),
        (lambda: Clip.of(1.0), "clip: clip must be ClipNorm, ClipValue, Clip or None, got 1.0"),
        (lambda: Sync(workers=0), "Sync: workers must be from 1 to 65536, or None, got 0"),
        (lambda: Sync(workers=1.5), "Sync: workers must be an integer or None, got 1.5"),
        (lambda: Sync(workers=True), "Sync: workers must be an integer or None, got True"),
        (lambda: Sync(workers=10**6), "Sync: workers must be from 1 to 65536, or None, got 1000000"),
        (lambda: Sync(reduce="max"), "Sync: reduce must be one of 'mean', 'sum', 'weighted', got 'max'"),
        (lambda: Sync(deterministic=1), "Sync: deterministic must be True or False, got 1"),
        (lambda: Sync(quorum=0), "Sync: quorum must be from 1 to 65536, or None, got 0"),
        (lambda: Sync(3, quorum=4), "Sync: quorum must be from 1 to 3, or None, got 4"),
        (lambda: Sync(grace=0.5), "Sync: grace must be 0 without a quorum, got 0.5"),
        (lambda: Sync(quorum=2, grace=-1), "Sync: grace must be from 0 to 3600.0 seconds, got -1.0"),
        (lambda: Sync(quorum=2, deterministic=True), "Sync: deterministic must be False with a quorum"),
        (lambda: Async(-1), "Async: max_staleness must be from 0 to 281474976710656, or None, got -1"),
        (lambda: Async(damping="linear"), "Async: damping must be one of 'inverse' or None, got 'linear'"),
        (lambda: BoundedStaleness(0, 1), "BoundedStaleness: workers must be from 1 to 65536, got 0"),
        (lambda: BoundedStaleness(2, -1), "BoundedStaleness: staleness must be from 0 to 281474976710656, got -1"),
        (lambda: BoundedStaleness(2.5, 1), "BoundedStaleness: workers must be an integer, got 2.5"),
    ],
)
def test_impossible_policies_are_refused(make: object, message: str) -> None:
    """The error names the policy, the field, what it must be and what was given."""
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        make()
