"""docs/adding-a-rule.md, followed literally: its code makes a rule that shards carry out."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepd.errors import InvalidArgument
from stepd.rules import Rule
from stepd.specs import optimizer_from_proto, optimizer_to_proto
from tests.unit.shard_bench import Fleet, arrays, run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adding-a-rule.md").read_text()
CODE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def rule_class(tmp_path: Path) -> Iterator[type[Rule]]:
    """The page's file, where its line imports it from; gone after the test."""
    module = re.match(r"from (stepd\.rules\.\w+) import (\w+) as \2\n$", LINE)
    assert module, LINE
    name, class_name = module.groups()
    file = tmp_path / f"{name.rpartition('.')[2]}.py"
    file.write_text(CODE)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
        yield getattr(sys.modules[name], class_name)
    finally:
        del sys.modules[name]
        Rule.registry.pop(class_name, None)


def test_the_page_names_the_file_of_its_line() -> None:
    assert "client/" + LINE.split()[1].replace(".", "/") + ".py" in PAGE


def test_it_goes_over_the_wire(rule_class: type[Rule]) -> None:
    rule = rule_class(lr=0.5, weight_decay=0.1)  # type: ignore[call-arg]
    assert optimizer_from_proto(optimizer_to_proto(rule)) == rule
    with pytest.raises(InvalidArgument, match=r"Signum: momentum must be in \[0, 1\), got 1.0"):
        rule_class(lr=0.5, momentum=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shards_carry_it_out(rule_class: type[Rule], tmp_path: Path, shards: int, dtype: str) -> None:
    """Five steps, on tensors of which one spans all shards, end where the formula ends."""
    initial, rate = arrays(0, dtype), 0.25
    gradients = [arrays(seed, dtype) for seed in range(1, 6)]

    async def scenario() -> None:
        fleet = Fleet(tmp_path, initial, rule_class(lr=rate), shards)
        await fleet.start()
        for round, grads in enumerate(gradients):
            await fleet.step(grads, round=round, lr=rate)
        found = await fleet.pull()
        for name, start in initial.items():
            p, b = start, np.zeros_like(start)
            for grads in gradients:
                b = 0.9 * b + 0.1 * grads[name]
                p = p - rate * np.sign(b)
            np.testing.assert_allclose(found[name], p, rtol=1e-6 if dtype == "float32" else 1e-12)

    run(scenario)


def test_a_server_without_it_says_so(rule_class: type[Rule]) -> None:
    message = optimizer_to_proto(rule_class(lr=0.5))
    Rule.registry.pop("Signum")
    with pytest.raises(
        InvalidArgument, match="no optimizer of the name 'Signum'; this version has ASGD, Adadelta"
    ) as e:
        optimizer_from_proto(message)
    assert e.value.reason == "UNKNOWN_RULE"
