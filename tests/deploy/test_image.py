"""The Dockerfile and its locks, held to the package and to the manifests."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.patience import PATIENCE_S

from .check_security import NOBODY
from .manifests import BASE, DEPLOY, ROOT, Manifests, tool

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _instructions() -> list[tuple[str, str]]:
    """(instruction, its text), with lines joined and comments left out."""
    text = "\n".join(
        line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]


def _last_stage() -> list[tuple[str, str]]:
    instructions = _instructions()
    start = max(i for i, (word, _) in enumerate(instructions) if word == "FROM")
    return instructions[start:]


def _only(instruction: str) -> str:
    (text,) = (text for word, text in _last_stage() if word == instruction)
    return text


def _locked(name: str) -> dict[str, Version]:
    return {
        canonicalize_name(found[1]): Version(found[2])
        for found in re.finditer(r"^(\S+)==(\S+)", (DEPLOY / name).read_text(), re.MULTILINE)
    }


def test_image_runs_as_the_user_of_the_pods() -> None:
    assert _only("USER") == f"{NOBODY}:{NOBODY}"


def test_image_exposes_the_ports_of_the_pods(manifests: Manifests) -> None:
    ports = {port for w in manifests.servers() for port in w.container.ports.values()}
    assert {int(port) for port in _only("EXPOSE").split()} == ports


def test_image_starts_the_console_script() -> None:
    """In the form of a list: a shell in between would swallow SIGTERM."""
    (script,) = json.loads(_only("ENTRYPOINT"))
    assert script in PROJECT["project"]["scripts"]
    assert _only("STOPSIGNAL") == "SIGTERM"


def test_version_is_the_same_everywhere() -> None:
    (image,) = yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"]
    assert image["newTag"] == PROJECT["project"]["version"]
    assert ("ARG", f"VERSION={PROJECT['project']['version']}") in _instructions()


def test_both_stages_have_one_base_with_a_tag() -> None:
    """The environment is copied between the stages, and its interpreter is that of the base."""
    bases = [text.split()[0] for word, text in _instructions() if word == "FROM"]
    assert bases == ["${PYTHON_IMAGE}"] * 2
    (default,) = (text.partition("=")[2] for word, text in _instructions() if text.startswith("PYTHON_IMAGE="))
    python = re.fullmatch(r"python:(3\.\d+)(\.\d+)?-slim-\w+", default)
    assert python is not None
    assert f"Programming Language :: Python :: {python[1]}" in PROJECT["project"]["classifiers"]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    for word, text in _instructions():
        if word != "COPY" or text.startswith("--from"):
            continue
        for source in text.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(Path(source).match(pattern) for pattern in kept), f"{source} is ignored"


def test_project_is_in_the_lock_with_hashes() -> None:
    locked = _locked("requirements.lock")
    for text in PROJECT["project"]["dependencies"]:
        wanted = Requirement(text)
        version = locked[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{text}, locked is {version}: make the lock again"


def test_build_is_in_the_lock() -> None:
    wanted = [line for line in (DEPLOY / "build.in").read_text().splitlines() if not line.startswith("#")]
    assert wanted == PROJECT["build-system"]["requires"]
    for text in wanted:
        assert Requirement(text).specifier.contains(_locked("build.lock")[Requirement(text).name])


@pytest.mark.parametrize("name", ["requirements.lock", "build.lock"])
def test_lock_is_exact_and_hashed(name: str) -> None:
    text = "\n".join(line for line in (DEPLOY / name).read_text().splitlines() if not line.startswith("#"))
    entries = text.replace("\\\n", " ").splitlines()
    assert entries
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ;.*?)?( +--hash=sha256:[0-9a-f]{64})+", entry), entry


def test_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
