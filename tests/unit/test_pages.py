"""docs/rules.md and docs/schedules.md say of every rule and schedule what the code says."""

from __future__ import annotations

import ast
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from stepd.rules import Reach, Rule
from stepd.schedules import Schedule

ROOT = Path(__file__).resolve().parents[2]
RULES_PAGE = (ROOT / "docs" / "rules.md").read_text()
SCHEDULES_PAGE = (ROOT / "docs" / "schedules.md").read_text()
RULES = {name: rule for name, rule in Rule.registry.items() if not name.startswith("_")}
SCHEDULES = {name: schedule for name, schedule in Schedule.registry.items() if not name.startswith("_")}
FILES = ROOT / "client" / "stepd" / "rules"


def rows(page: str) -> dict[str, list[str]]:
    """The first row of each name, by the name that its first code span begins with."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        if match := re.match(r"\| `(\w+)", line):
            found.setdefault(match[1], [cell.strip() for cell in line.split("|")][1:-1])
    return found


def test_every_rule_has_a_row_and_no_other() -> None:
    assert set(rows(RULES_PAGE)) == {name for name in RULES if is_ours(RULES[name])}


def is_ours(cls: type) -> bool:
    return cls.__module__.startswith("stepd.")


@pytest.mark.parametrize("name", RULES)
def test_a_rules_row_is_true(name: str) -> None:
    """Its reach, its buffers and scalars by name, and the bytes: parameter, accumulator and buffers."""
    rule = RULES[name](lr=1.0)
    _, reach, paper, kept, size, *_ = rows(RULES_PAGE)[name]
    assert reach == rule.reach.value
    if kept != "as Adam":
        names = {buffer.name for buffer in rule.buffers()} | {scalar.name for scalar in rule.scalars()}
        assert names <= set(re.findall(r"`(\w+)`", kept))
    assert int(re.match(r"\d+", size)[0]) == 8 + 4 * len(rule.buffers()) or rule.reach is Reach.WHOLE  # type: ignore[index]
    links = re.findall(r"https?://\S+?(?=[\s;,]|$)", inspect.getdoc(RULES[name]) or "")
    address = re.search(r"\((http[^)]*)\)", paper)
    assert address
    assert address[1] in [link.rstrip(".") for link in links]


@pytest.mark.parametrize("name", RULES)
def test_a_rules_formula_is_its_docstrings(name: str) -> None:
    """Line by line, whatever the indentation."""
    lines = (inspect.getdoc(RULES[name]) or "").splitlines()
    section = RULES_PAGE.partition(f"### {name}\n")[2].partition("\n### ")[0]
    assert "```" in section
    on_page = {line.strip() for line in section.splitlines()}
    assert {line.strip() for line in lines if line.startswith("    ")} <= on_page


def test_every_schedule_has_a_row_and_no_other() -> None:
    assert set(rows(SCHEDULES_PAGE)) == {name for name in SCHEDULES if is_ours(SCHEDULES[name])}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedules_row_has_its_arguments_and_defaults(name: str) -> None:
    call = re.match(r"`(.*?)`", rows(SCHEDULES_PAGE)[name][0])
    assert call
    parsed = ast.parse(call[1], mode="eval").body
    assert isinstance(parsed, ast.Call)
    written: dict[str, Any] = {ast.unparse(argument): inspect.Parameter.empty for argument in parsed.args}
    written |= {str(keyword.arg): eval(ast.unparse(keyword.value)) for keyword in parsed.keywords}
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    assert written == {parameter.name: parameter.default for parameter in parameters}
    assert list(written) == [parameter.name for parameter in parameters]


def test_the_pictures_are_those_that_the_tool_draws() -> None:
    """python tools/draw_schedules.py"""
    drawn = runpy.run_path(str(ROOT / "tools" / "draw_schedules.py"))
    pictures = drawn["pictures"]()
    for name, text in pictures.items():
        assert (ROOT / "docs" / name).read_text() == text, name
        assert f"({name})" in SCHEDULES_PAGE
    schedules = {type(one).__name__ for _, family in drawn["FAMILIES"].values() for one in family.values()}
    assert schedules == {name for name in SCHEDULES if is_ours(SCHEDULES[name])}
