"""docs/kubernetes.md says what works: its overlay is rendered, and its Secrets are made, without a cluster."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stepd_server.tokens import Tokens

from .check import CHECKS
from .check_security import SERVERS_SECRET, WORKERS_SECRET
from .manifests import BASE, ROOT, Manifests, render, tool

TEXT = (ROOT / "docs" / "kubernetes.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_overlay_of_the_docs_passes_the_checks(tmp_path: Path) -> None:
    (overlay,) = _blocks("yaml")
    assert "../../base" in overlay
    text = overlay.replace("../../base", os.path.relpath(BASE, tmp_path.resolve()))
    (tmp_path / "kustomization.yaml").write_text(text)
    manifests = Manifests(render(tmp_path))
    assert manifests.shard.spec["replicas"] == 4
    for name, check in CHECKS.items():
        if name != "base_is_in_no_namespace":
            assert list(check(manifests)) == [], name


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_secrets_of_the_docs_are_what_the_pods_want(tmp_path: Path) -> None:
    """The commands as they stand, but printed (--dry-run) in place of sent."""
    (commands,) = (block for block in _blocks("sh") if "create secret" in block)
    kept = "\n".join(line for line in commands.splitlines() if "kubectl apply" not in line)
    kept = kept.replace("/dev/stdin", "/dev/stdin --dry-run=client -o yaml; echo ---")
    folder = Path(tool("kubectl")).parent
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), "KUBECONFIG": "/dev/null"}
    done = subprocess.run(["bash", "-euc", kept], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    secrets = {secret["metadata"]["name"]: secret["data"] for secret in yaml.safe_load_all(done.stdout) if secret}
    assert set(secrets) == {SERVERS_SECRET, WORKERS_SECRET}

    file = tmp_path / "tokens"
    file.touch(mode=0o600)
    file.write_bytes(base64.b64decode(secrets[SERVERS_SECRET]["tokens"]))
    tokens = Tokens.load(file)
    tokens.require_fleet_token()
    user = tokens.role_of(base64.b64decode(secrets[WORKERS_SECRET]["token"]))
    assert user is not None
    assert user.value == "user"


def test_docs_name_the_ports_of_the_manifests(manifests: Manifests) -> None:
    ports = {port for w in manifests.servers() for port in w.container.ports.values()}
    assert {int(port) for port in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)} == ports
