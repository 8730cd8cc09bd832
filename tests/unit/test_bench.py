"""What measurements are made into: slopes, tables, charts and pages."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from bench import pages
from bench.compare import bars
from bench.compare.catalogue import SYSTEMS
from bench.compare.table import chart, markdown
from bench.compare.turns import Result, groups_of
from bench.fit import power_law
from bench.memory import made_of
from stepd.chart import Line, Panel, render

SVG = "{http://www.w3.org/2000/svg}"


def result(key: str, workers: int, seconds: float, **other: object) -> Result:
    whole = {"steps": 20, "processor_s": 0.5, "peak_bytes": None, "deviation": None}
    return Result(key=key, workers=workers, seconds=seconds, **{**whole, **other})


def words(document: ET.Element) -> list[str]:
    return ["".join(found.itertext()) for found in document.iter(f"{SVG}text")]


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0])
def test_a_power_law_is_found(exponent: float) -> None:
    xs = [1.0, 2.0, 8.0, 100.0]
    fit = power_law(xs, [3.0 * x**exponent for x in xs])
    assert fit.exponent == pytest.approx(exponent)
    assert fit.at(5.0) == pytest.approx(3.0 * 5.0**exponent)


def test_one_place_has_no_slope() -> None:
    with pytest.raises(ValueError, match="different x"):
        power_law([2.0, 2.0], [1.0, 3.0])


def test_a_page_keeps_what_is_around_a_part() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n<!-- y: begin -->\n<!-- y: end -->\n"
    changed = pages.replaced(page, "x", "new")
    assert changed == page.replace("old", "new")
    assert pages.replaced(changed, "x", "old") == page
    with pytest.raises(ValueError, match="'z'"):
        pages.replaced(page, "z", "new")


def test_the_page_has_the_parts_that_programs_write() -> None:
    page = pages.PAGE.read_text()
    for part in ("compare", "growth-size", "growth-workers", "growth-shards"):
        assert pages.replaced(page, part, "new") != page


def test_systems_are_there_at_once_as_far_as_the_memory_goes() -> None:
    assert groups_of(SYSTEMS, 2, 1e12) == [list(SYSTEMS)]
    groups = groups_of(SYSTEMS, 2, 8e9)
    assert max(map(len, groups)) <= 5
    assert sorted(system.key for group in groups for system in group) == sorted(system.key for system in SYSTEMS)
    assert len(groups_of(SYSTEMS, 1, 0)) == len(SYSTEMS)


def test_the_table_has_a_row_for_each_system_that_was_measured() -> None:
    measured = [
        result("local", 1, 0.0221),
        result("ray", 1, 0.08, peak_bytes=7e8),
        result("ray", 2, 0.1, deviation=2e-5),
    ]
    lines = markdown(SYSTEMS, measured, ["2 cores", "Python 3.11"]).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")][2:] == [
        next(system.name for system in SYSTEMS if system.key == key) for key in ("local", "ray")
    ]
    assert [cell.strip() for cell in lines[3].split("|")[3:-1]] == [
        *("0.080", "0.100", "0.500", "0.500", "700", "-", "2e-05")
    ]
    assert lines[-1] == "2 cores, Python 3.11."


def test_the_chart_has_the_fastest_first_and_our_own_in_colour() -> None:
    measured = [result("local", 1, 0.02), result("rpc-tcp", 1, 0.1), result("stepd-grpc", 1, 0.05)]
    document = ET.fromstring(chart(SYSTEMS, measured, "subtitle"))
    names = [word for word in words(document) if word.startswith(("torch", "stepd"))]
    assert names == ["torch, in the training process", "stepd (gRPC)", "torch.distributed.rpc (TCP)"]
    assert sum(found.get("class") == "fill-a" for found in document.iter(f"{SVG}rect")) == 1


def test_a_bar_is_as_long_as_its_value_and_broken_off_at_the_end_of_the_axis() -> None:
    groups = [bars.Group("a", (1.0, None), ours=True), bars.Group("b", (2.0, 40.0), ours=True)]
    document = ET.fromstring(bars.render(groups, ("x", "y"), title="t", subtitle="s", most=4.0))
    widths = [float(found.attrib["width"]) for found in document.iter(f"{SVG}rect") if found.get("class") == "fill-a"]
    assert len(widths) == 3
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], abs=0.3)
    assert [word for word in words(document) if "…" in word] == [" …40.000"]


def test_a_power_law_is_straight_over_logarithms() -> None:
    xs = [1.0, 4.0, 64.0]
    document = ET.fromstring(render([Panel("p", "", (Line(xs, xs),), log=True)], title="t", log_x=True))
    (line,) = document.iter(f"{SVG}polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in line.attrib["points"].split())
    assert math.isclose((y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1), rel_tol=0.01)


def test_what_memory_is_made_of() -> None:
    smaps = """\
7f0000000000-7f0000010000 rw-s 00000000 00:1a 7          /dev/shm/fleet/shard-0/runs/w/accumulator
Rss:                  64 kB
Anonymous:             0 kB
7f0000010000-7f0000020000 rw-s 00000000 00:1a 8          /dev/shm/fleet/shard-0/runs/w/parameters
Rss:                  32 kB
Anonymous:             0 kB
7f0000020000-7f0000030000 r--s 00000000 00:01 9          /memfd:stepd-gradients (deleted)
Rss:                  16 kB
Anonymous:             0 kB
7f0000030000-7f0000040000 rw-p 00000000 fe:00 10         /lib/libc.so
Rss:                  12 kB
Anonymous:             4 kB
7f0000040000-7f0000050000 rw-p 00000000 00:00 0
Rss:                   2 kB
Anonymous:             2 kB
"""
    expected = {"state": 32, "sum": 64, "workers": 16, "files": 8, "own": 6}
    assert made_of(smaps) == {kind: kib * 1024 for kind, kib in expected.items()}
