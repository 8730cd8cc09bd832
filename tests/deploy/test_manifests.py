"""The base renders, fits the schemas of Kubernetes, and holds what the checks say; and the checks can fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from . import check_lifetime, check_security, check_wiring
from .check import CHECKS
from .manifests import DEPLOY, Document, Manifests
from .mutants import MUTANTS, Mutant

# The oldest that docs/kubernetes.md promises, and the newest that there is a schema for.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]


@pytest.mark.parametrize("version", VERSIONS)
def test_fits_the_schemas_of_kubernetes(rendered: list[Document], version: str) -> None:
    """Strictly: a field that is not known fails, and so does a kind or version without a schema."""
    for document in rendered:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.shard.spec.update(podManagmentPolicy="Parallel"),
        lambda m: m.shard.spec.update(replicas="2"),
        lambda m: m.shard.document.update(apiVersion="apps/v1beta1"),
    ],
    ids=["misspelt field", "text for a number", "removed version of the API"],
)
def test_validation_can_fail(manifests: Manifests, change: Callable[[Manifests], Any]) -> None:
    change(manifests)
    with pytest.raises((kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError)):
        kubernetes_validate.validate(manifests.shard.document, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", CHECKS)
def test_base_passes(manifests: Manifests, name: str) -> None:
    assert list(CHECKS[name](manifests)) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.check}: {mutant.wrong}")
def test_check_finds_the_mutant(manifests: Manifests, mutant: Mutant) -> None:
    mutant.change(manifests)
    assert list(CHECKS[mutant.check](manifests)) != []


def test_every_check_has_a_mutant() -> None:
    assert {mutant.check for mutant in MUTANTS} == set(CHECKS)
    defined = {module.__name__ for module in (check_security, check_wiring, check_lifetime)}
    assert {check.__module__ for check in CHECKS.values()} == defined


def test_namespace_admits_only_restricted_pods() -> None:
    """The base is in no namespace; the one beside it enforces what the checks of the pods promise."""
    namespace = yaml.safe_load((DEPLOY / "kubernetes" / "namespace.yaml").read_text())
    kubernetes_validate.validate(namespace, VERSIONS[-1], strict=True)
    labels = namespace["metadata"]["labels"]
    for mode in ("enforce", "warn", "audit"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_base_lists_every_file(rendered: list[Document]) -> None:
    """A manifest that kustomization.yaml does not name would be read by people and applied by nobody."""
    base = DEPLOY / "kubernetes" / "base"
    listed = yaml.safe_load((base / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in _yaml_files(base) if path.name != "kustomization.yaml")


def _yaml_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in {".yaml", ".yml"}]
