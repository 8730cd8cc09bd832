"""The rendered manifests, read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BASE = DEPLOY / "kubernetes" / "base"

COORDINATOR, SHARD, WORKERS = "stepd-coordinator", "stepd-shard", "stepd-demo"

# Stands for what a Secret holds.
SECRET = "from-a-secret"

Document = dict[str, Any]


def tool(name: str) -> str:
    """A program to test with: the one pinned in the development requirements if it is installed, else the machine's."""
    beside_python = Path(sys.executable).parent / name
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found:
        return found
    reason = f"no {name}: install the development requirements, or put one on PATH"
    # CI sets these, so that there a missing program is a failure and not a quiet skip.
    if os.environ.get(f"STEPD_REQUIRE_{name.upper()}") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def render(folder: Path) -> list[Document]:
    """What `kubectl apply -k folder` would send."""
    done = subprocess.run([tool("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return [document for document in yaml.safe_load_all(done.stdout) if document]


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def bytes_of(quantity: object) -> int:
    """The value of a quantity of memory. ValueError if it is none, or one (such as 512m) that nobody can mean."""
    found = re.fullmatch(r"([1-9]\d*)([A-Za-z]*)", str(quantity))
    if found is None or found[2] not in UNITS:
        raise ValueError(f"{quantity!r} is not a quantity of memory")
    return int(found[1]) * UNITS[found[2]]


@dataclass(frozen=True)
class Workload:
    """A StatefulSet or a Job."""

    document: Document

    @property
    def name(self) -> str:
        return str(self.document["metadata"]["name"])

    @property
    def kind(self) -> str:
        return str(self.document["kind"])

    @property
    def spec(self) -> Document:
        spec: Document = self.document["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        """Of its pods."""
        labels: dict[str, str] = self.spec["template"]["metadata"]["labels"]
        return labels

    @property
    def annotations(self) -> dict[str, str]:
        """Of its pods."""
        annotations: dict[str, str] = self.spec["template"]["metadata"].get("annotations", {})
        return annotations

    @property
    def pod(self) -> Document:
        pod: Document = self.spec["template"]["spec"]
        return pod

    @property
    def container(self) -> Container:
        """Its only one."""
        (container,) = self.pod["containers"]
        return Container(container)

    @property
    def volumes(self) -> dict[str, Document]:
        return {volume["name"]: volume for volume in self.pod.get("volumes", [])}

    def environment_of_pod(self, ordinal: int) -> dict[str, str]:
        """As the kubelet makes it. What is in a Secret is `SECRET`."""
        environment = {"JOB_COMPLETION_INDEX": str(ordinal)} if self.spec.get("completionMode") == "Indexed" else {}
        for name, variable in self.container.environment.items():
            source = variable.get("valueFrom", {})
            if "secretKeyRef" in source:
                environment[name] = SECRET
            elif "fieldRef" in source:
                environment[name] = {"metadata.name": f"{self.name}-{ordinal}"}[source["fieldRef"]["fieldPath"]]
            else:
                environment[name] = variable["value"]
        return environment

    def arguments_of_pod(self, ordinal: int) -> list[str]:
        """With the variables in them replaced."""
        environment = self.environment_of_pod(ordinal)
        return [re.sub(r"\$\((\w+)\)", lambda v: environment[v[1]], text) for text in self.container.arguments]


@dataclass(frozen=True)
class Container:
    """The container of a pod."""

    document: Document

    @property
    def environment(self) -> dict[str, Document]:
        return {variable["name"]: variable for variable in self.document.get("env", [])}

    @property
    def arguments(self) -> list[str]:
        return [str(argument) for argument in self.document.get("args", [])]

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.document.get("ports", [])}

    @property
    def mounts(self) -> list[Document]:
        return list(self.document.get("volumeMounts", []))

    def value_of(self, flag: str) -> str:
        """What `flag` is given as; empty if it is not given."""
        for argument in self.arguments:
            name, equals, value = argument.partition("=")
            if name == flag and equals:
                return value
        return ""

    def port_of(self, flag: str) -> int | None:
        """The port at the end of the flag's HOST:PORT."""
        port = self.value_of(flag).rpartition(":")[2]
        return int(port) if port.isdigit() else None


@dataclass(frozen=True)
class Manifests:
    """Everything that is rendered."""

    documents: list[Document]

    def of(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def names(self, kind: str) -> set[str]:
        return {document["metadata"]["name"] for document in self.of(kind)}

    def named(self, kind: str, name: str) -> Document:
        (document,) = (document for document in self.of(kind) if document["metadata"]["name"] == name)
        return document

    def workloads(self) -> Iterator[Workload]:
        for document in self.of("StatefulSet", "Job"):
            yield Workload(document)

    def servers(self) -> Iterator[Workload]:
        for document in self.of("StatefulSet"):
            yield Workload(document)

    @property
    def coordinator(self) -> Workload:
        return Workload(self.named("StatefulSet", COORDINATOR))

    @property
    def shard(self) -> Workload:
        return Workload(self.named("StatefulSet", SHARD))

    @property
    def workers(self) -> Workload:
        return Workload(self.named("Job", WORKERS))

    def selected_by(self, selector: dict[str, str]) -> list[Workload]:
        return [w for w in self.workloads() if selector.items() <= w.labels.items()]
