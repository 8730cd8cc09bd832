"""The base, rendered once."""

from __future__ import annotations

import copy

import pytest

from .manifests import BASE, Document, Manifests, render


@pytest.fixture(scope="session")
def rendered() -> list[Document]:
    return render(BASE)


@pytest.fixture
def manifests(rendered: list[Document]) -> Manifests:
    """A copy of its own for each test."""
    return Manifests(copy.deepcopy(rendered))
