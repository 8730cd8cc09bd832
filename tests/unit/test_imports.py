"""The shape of the source tree, read from the tree itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stepd

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
    for base in (ROOT / "client", ROOT / "server")
    for path in sorted(base.rglob("*.py"))
}
OWN = {name: path for name, path in SOURCES.items() if not name.startswith("stepd.v1")}

# Values in, values out. Each may import what is listed here, generated messages, and of the rest nothing in IMPURE.
# A trailing dot means a whole package.
PURE = (
    "stepd.arrays",
    "stepd.averages",
    "stepd.buffers",
    "stepd.chart",
    "stepd.compat",
    "stepd.compression",
    "stepd.definitions",
    "stepd.encodings",
    "stepd.errors",
    "stepd.hyperparameters",
    "stepd.info",
    "stepd.layout",
    "stepd.limits",
    "stepd.observations",
    "stepd.parameters",
    "stepd.policies",
    "stepd.rules.",
    "stepd.schedules.",
    "stepd.settings",
    "stepd.specs",
    "stepd.state_space",
    "stepd.targets",
    "stepd.torch_form",
    "stepd.transfer",
    "stepd.wire",
    "stepd_server.coordinator.attempt",
    "stepd_server.coordinator.closing",
    "stepd_server.coordinator.quorum",
    "stepd_server.coordinator.cycling",
    "stepd_server.coordinator.decision",
    "stepd_server.coordinator.events",
    "stepd_server.coordinator.line",
    "stepd_server.coordinator.membership",
    "stepd_server.coordinator.placing",
    "stepd_server.coordinator.plateaus",
    "stepd_server.coordinator.policy",
    "stepd_server.coordinator.rounds",
    "stepd_server.coordinator.standing",
    "stepd_server.coordinator.turns",
    "stepd_server.coordinator.seats",
    "stepd_server.coordinator.vocabulary",
    "stepd_server.exact",
    "stepd_server.shard.accumulating",
    "stepd_server.shard.coverage",
    "stepd_server.shard.gathered",
    "stepd_server.shard.gathering",
    "stepd_server.shard.in_numpy",
    "stepd_server.shard.journal",
    "stepd_server.shard.lanes",
    "stepd_server.shard.plan",
    "stepd_server.shard.scratch",
    "stepd_server.shard.sums",
    "stepd_server.shard.undo",
)
# Sockets, processes and threads; files; clocks and chance.
# Pure to whoever calls it, if not inside: what it compiles gives what it gives without.
COMPILED = ("stepd.casts",)
IMPURE = {
    *("grpc", "grpc_health", "grpc_status", "socket", "ssl", "select", "selectors", "http", "urllib"),
    *("asyncio", "concurrent", "threading", "multiprocessing", "subprocess", "signal", "queue", "ctypes"),
    *("os", "io", "pathlib", "shutil", "tempfile", "mmap", "fcntl", "logging"),
    *("time", "datetime", "random", "secrets", "uuid"),
}
LINES_MAX = 400


def is_pure(module: str) -> bool:
    return any(module == name or (name.endswith(".") and f"{module}.".startswith(name)) for name in PURE)


def imports(module: str) -> Iterator[str]:
    """What a module imports, by full name; `from a import b` is a.b where that is a module, else a."""
    package = module if SOURCES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (parent, node.module)))
            for alias in node.names:
                full = f"{origin}.{alias.name}"
                yield full if full in SOURCES else origin


def test_the_list_of_pure_modules_names_modules_that_exist() -> None:
    assert [name for name in PURE if not any(is_pure(module) for module in OWN if f"{module}.".startswith(name))] == []


@pytest.mark.parametrize("module", [name for name in OWN if name.split(".")[0] == "stepd"])
def test_the_library_never_imports_the_server(module: str) -> None:
    assert [name for name in imports(module) if name.split(".")[0] == "stepd_server"] == []


@pytest.mark.parametrize("module", [name for name in OWN if is_pure(name)])
def test_pure_modules_do_no_io(module: str) -> None:
    for name in imports(module):
        top = name.split(".")[0]
        if top in {"stepd", "stepd_server"}:
            assert is_pure(name) or name in COMPILED or re.fullmatch(r"stepd\.v1(\.\w+_pb2)?", name), (
                f"{name} is not pure"
            )
        else:
            assert top not in IMPURE, name
    calls = [node.func for node in ast.walk(ast.parse(OWN[module].read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(call, ast.Name) and call.id in {"open", "print", "input"} for call in calls)


def own_files() -> list[Path]:
    tests = [
        path for folder in ("tests", "tools", "bench", "examples") for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    return [*OWN.values(), *tests]


def test_a_file_is_short_enough_to_be_read() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in own_files()}
    assert {name: count for name, count in lines.items() if count > LINES_MAX} == {}


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [str(path.relative_to(ROOT)) for path in own_files() if marks.search(path.read_text())]
    assert found == [str(Path(__file__).relative_to(ROOT))]


def test_every_module_says_what_it_is() -> None:
    silent = [name for name, path in OWN.items() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_what_stepd_offers_is_where_it_says() -> None:
    """Checkers of types read the imports, and Python the table beside them."""
    (block,) = [node for node in ast.parse(SOURCES["stepd"].read_text()).body if isinstance(node, ast.If)][:1]
    imported = {
        alias.name: (node.module or "").removeprefix("stepd.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module != "stepd"
    }
    assert imported == stepd._HOME_OF
    assert set(stepd.__all__) == imported.keys() | {"__version__", "compat"}
    for name in stepd.__all__:
        assert getattr(stepd, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Adamm'"):
        stepd.Adamm  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("stepd", {"numpy", "grpc"}),
        ("stepd.cli", {"numpy", "grpc", "rich"}),
        ("stepd_server.cli, stepd_server.supervisor", {"numpy", "grpc"}),
        ("stepd_server.cli, stepd_server.shard.service", {"stepd.worker", "stepd.client", "prometheus_client"}),
        ("stepd_server.cli, stepd_server.coordinator.service", {"stepd.worker", "stepd.client", "prometheus_client"}),
    ],
)
def test_programs_start_without_what_they_do_not_need(modules: str, heavy: set[str]) -> None:
    """Each takes a part of a second, of every server of every fleet."""
    script = f"import sys, {modules}; print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert heavy.isdisjoint(imported.split())
