"""The tables of docs/from-*.md: every name of ours in them exists, every row has a test that exists."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import stepd
from stepd.rules import Rule
from stepd.schedules import Schedule

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / f"from-{library}.md" for library in ("torch", "optax", "others")]
OWNERS: dict[str, Any] = {
    "client": stepd.Client,
    "run": stepd.Run,
    "worker": stepd.Worker,
    "result": stepd.StepResult,
}

# torch 2.13's own lists: torch.optim, lr_scheduler, swa_utils and the public methods of Optimizer.
TORCH_TEXT = """
    Adafactor Adadelta Adagrad Adam Adamax AdamW ASGD LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam
    swap_in_optimizer_params_and_state
    LambdaLR MultiplicativeLR StepLR MultiStepLR ConstantLR LinearLR ExponentialLR SequentialLR CosineAnnealingLR
    ChainedScheduler ReduceLROnPlateau CyclicLR CosineAnnealingWarmRestarts OneCycleLR PolynomialLR LRScheduler
    AveragedModel update_bn SWALR get_ema_multi_avg_fn get_swa_multi_avg_fn get_ema_avg_fn get_swa_avg_fn
    add_param_group load_state_dict profile_hook_step register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_state_dict_post_hook register_state_dict_pre_hook
    register_step_post_hook register_step_pre_hook state_dict step zero_grad OptimizerPostHook OptimizerPreHook
    clip_grad_norm_ clip_grad_value_ clip_grads_with_norm_ get_total_norm
"""
TORCH = set(re.findall(r"\w+", TORCH_TEXT))


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        page: its file.
        theirs: the other library's names.
        ours: the column `stepd`.
        test: the column `test`: keys of the page's list of tests, or a dash.
        text: all of it.
    """

    page: Path
    theirs: str
    ours: str
    test: str
    text: str


def rows_of(page: Path) -> list[Row]:
    rows = []
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")][1:-1]
        if cells and cells[1] not in ("stepd", "---"):
            assert len(cells) == 4, line
            rows.append(Row(page, cells[0], cells[1], cells[3], line))
    return rows


ROWS = [row for page in PAGES for row in rows_of(page)]


def names_in(text: str) -> set[str]:
    """Names of ours in code spans: stepd.Adam, run.get_lr."""
    spans = " ".join(re.findall(r"`([^`]*)`", text))
    return set(re.findall(rf"\b(?:stepd|{'|'.join(OWNERS)})\.\w+", spans))


def exists(name: str) -> bool:
    owner, attribute = name.split(".")
    if owner == "stepd":
        return hasattr(stepd, attribute) or importlib.util.find_spec(name) is not None
    fields = {field.name for field in dataclasses.fields(OWNERS[owner])} if owner == "result" else set()
    return hasattr(OWNERS[owner], attribute) or attribute in fields


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_rows(page: Path) -> None:
    assert len(rows_of(page)) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.page.stem}: {row.theirs}")
def test_every_name_exists(row: Row) -> None:
    assert {name for name in names_in(row.text) if not exists(name)} == set()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.page.stem}: {row.theirs}")
def test_every_call_has_arguments_that_exist(row: Row) -> None:
    """And those of rules and schedules have values that are taken."""
    for span in re.findall(r"`((?:stepd|client)\.\w+\([^`]*\))`", row.ours):
        call = ast.parse(span, mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Attribute)
        target = named(ast.unparse(call.func))
        parameters = inspect.signature(target).parameters
        accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        keywords = {keyword.arg for keyword in call.keywords}
        assert accepts_any or keywords <= set(parameters), span
        if isinstance(target, type) and issubclass(target, Rule | Schedule) and not free_names(call):
            eval(span, {"stepd": stepd})  # no code of others: pages of this repository


def named(dotted: str) -> Any:
    """What a call on the pages calls."""
    owner, attribute = dotted.split(".")
    return getattr(stepd.Client if owner == "client" else stepd, attribute)


def free_names(call: ast.Call) -> set[str]:
    return {node.id for node in ast.walk(call) if isinstance(node, ast.Name)} - {"stepd"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.page.stem}: {row.theirs}")
def test_every_row_has_a_test(row: Row) -> None:
    """Unless there is nothing of ours in it."""
    if row.test == "-":
        assert row.ours == "-"
        return
    tests = dict(re.findall(r"^- (\w+): `([^`]+)`$", row.page.read_text(), re.MULTILINE))
    for key in row.test.split(", "):
        file, _, function = tests[key].partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), tests[key]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_listed_is_of_a_row(page: Path) -> None:
    listed = set(re.findall(r"^- (\w+): `", page.read_text(), re.MULTILINE))
    assert listed == {key for row in rows_of(page) for key in row.test.split(", ")} - {"-"}


def test_everything_that_torch_has_is_there() -> None:
    words = set(re.findall(r"\w+", " ".join(row.theirs for row in rows_of(PAGES[0]))))
    assert words >= TORCH


def test_every_rule_and_schedule_of_torch_is_mapped_to_one_of_ours() -> None:
    """Whatever is ours and torch's, too, stands on torch's page."""
    page = PAGES[0].read_text()
    ours = {name for name in Rule.registry if name in TORCH}
    assert {name for name in ours if f"stepd.{name}(" not in page} == set()
